"""Layers of flows: Jacobians and round trips, initialisation, caches, autocast, dequantisation."""

import copy
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
from torch import nn

import pyfastgan as pf

from .flow_networks import Net, initialized, seeded


def layers(condition=0):
    mask = [True, False, False, True, True, False]
    half = pf.nn.SplineCoupling.numbers
    return {
        "affine": pf.nn.AffineCoupling(6, Net(3, 6, condition)),
        "affine, mask": pf.nn.AffineCoupling(6, Net(3, 6, condition), mask=mask, scale="softclamp"),
        "spline": pf.nn.SplineCoupling(6, Net(3, 3 * half(5), condition), bins=5),
        "spline, mask": pf.nn.SplineCoupling(
            6, Net(2, 4 * half(4, "linear", "freia"), condition), bins=4, mask=[True] * 4 + [False] * 2,
            parameterisation="freia",
        ),
        "spline, zuko": pf.nn.SplineCoupling(
            6, Net(3, 3 * half(4, "linear", "zuko"), condition), bins=4, parameterisation="zuko"
        ),
        "convolution": pf.nn.InvertibleConv1x1(6),
        "convolution, lu": pf.nn.InvertibleConv1x1(6, lu=True),
        "actnorm": initialized(pf.nn.ActNorm(6)),
        "step": initialized(pf.nn.GlowStep(6, Net(3, 6, condition))),
        "step, stored": initialized(pf.nn.GlowStep(6, Net(3, 6, condition), lu=True, recompute=False)),
    }  # fmt: skip


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", layers())
def test_logdet_and_inverse(name, conditional):
    """The convention that all layers share."""
    torch.manual_seed(0)
    layer = layers(2 if conditional else 0)[name].double()
    x = seeded(3, 6, seed=1)
    condition = seeded(3, 2, seed=2) if conditional else None
    y, logdet = layer(x, condition)
    back, other = layer.inverse(y, condition)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other, -logdet, rtol=1e-9, atol=1e-9)
    for k in range(3):
        own = None if condition is None else condition[k : k + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda t, own=own: layer(t, own)[0], x[k : k + 1]
        )
        exact = torch.linalg.slogdet(jacobian.reshape(6, 6))[1]
        torch.testing.assert_close(logdet[k], exact, rtol=0, atol=1e-10)


def test_images_are_coupled_position_by_position():
    half = pf.nn.SplineCoupling.numbers(4)
    for layer in (
        pf.nn.AffineCoupling(6, Net(3, 6, image=True)),
        pf.nn.SplineCoupling(6, Net(3, 3 * half, image=True), bins=4),
        pf.nn.InvertibleConv1x1(6).double(),
        initialized(pf.nn.GlowStep(6, Net(3, 6, image=True))),
    ):
        flat = copy.deepcopy(layer)
        for module in flat.modules():
            if isinstance(module, Net):
                module.image = False
        x = seeded(2, 6, 4, 5)
        y, logdet = layer(x)
        rows = x.permute(0, 2, 3, 1).reshape(-1, 6)
        z, each = flat(rows)
        torch.testing.assert_close(y, z.reshape(2, 4, 5, 6).permute(0, 3, 1, 2))
        torch.testing.assert_close(logdet, each.reshape(2, -1).sum(1))
        torch.testing.assert_close(layer.inverse(y)[0], x, rtol=1e-9, atol=1e-9)


def test_spline_coupling_is_nflows():
    net = Net(3, 3 * 23)
    theirs = PiecewiseRationalQuadraticCouplingTransform(
        [0, 0, 0, 1, 1, 1], lambda i, o: net, num_bins=8, tails="linear", tail_bound=3.0
    )
    theirs.transform_net.forward = lambda x, context=None: Net.forward(net, x, context)
    ours = pf.nn.SplineCoupling(6, net, bins=8)
    x = 2 * seeded(20, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.inverse(x), theirs.inverse(x), rtol=1e-9, atol=1e-9)


def test_actnorm_normalises_only_when_it_is_told():
    x = 3 * seeded(40, 5, 2, 2) + torch.arange(5.0, dtype=torch.float64).reshape(1, 5, 1, 1)
    x[:, 4] = 7.0  # a channel that does not vary
    norm = pf.nn.ActNorm(5).double()
    for mode in (True, False):
        norm.train(mode)
        for call in (norm, norm.inverse):
            with pytest.raises(
                RuntimeError, match=r"ActNorm is not initialized: call init\(batch\)"
            ):
                call(x)
    out = norm.init(x)
    torch.testing.assert_close(norm(x)[0], out)
    torch.testing.assert_close(
        out.mean((0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-10, rtol=0
    )
    variance = out.transpose(0, 1).flatten(1).var(1, correction=0)
    torch.testing.assert_close(variance, torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64))
    before = norm.bias.clone()
    norm(x + 1)
    assert torch.equal(norm.bias, before)
    assert pf.nn.ActNorm(5).init(seeded(1, 5)).isfinite().all()  # a batch of one has no variance


def test_actnorm_s_flag_is_saved_and_loaded():
    norm, other = pf.nn.ActNorm(3), pf.nn.ActNorm(3)
    norm.init(torch.randn(10, 3))
    other.load_state_dict(norm.state_dict())
    x = torch.randn(4, 3)
    torch.testing.assert_close(other(x), norm(x))
    norm.load_state_dict(pf.nn.ActNorm(3).state_dict())
    with pytest.raises(RuntimeError, match="not initialized"):
        norm(x)


def test_two_ranks_initialise_actnorm_alike(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, torch, torch.distributed as dist
            import pyfastgan as pf
            rank = int(sys.argv[1])
            dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
            batch = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            norm = pf.nn.ActNorm(4).double()
            norm.init(batch[:10] if rank == 0 else batch[10:])
            alone = batch.mean(0), batch.var(0, correction=0)
            torch.testing.assert_close(norm.bias.detach(), -alone[0])
            torch.testing.assert_close(norm.log_scale.detach(), -0.5 * alone[1].log())
            gathered = [torch.empty(8, dtype=torch.float64) for _ in range(2)]
            dist.all_gather(gathered, torch.cat((norm.bias, norm.log_scale)).detach())
            assert torch.equal(*gathered)
            dist.barrier(); dist.destroy_process_group(); sys.stdout.flush(); os._exit(0)
            """
        )
    )
    command = [sys.executable, str(script)]
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path / "meet")]) for r in range(2)]
    assert [r.wait(timeout=120) for r in ranks] == [0, 0]


@pytest.mark.parametrize("lu", [False, True])
def test_the_convolution_s_inverse_follows_its_weight(lu):
    torch.manual_seed(1)
    conv, other = (pf.nn.InvertibleConv1x1(4, lu=lu) for _ in range(2))
    y = torch.randn(3, 4)
    with torch.no_grad():
        conv.inverse(y)
        assert conv.inverse_matrix() is conv.inverse_matrix()  # kept

        def check():
            torch.testing.assert_close(conv(conv.inverse(y)[0])[0], y, rtol=1e-5, atol=1e-5)

        for p in conv.parameters():
            p.add_(0.1)
        check()
        conv.load_state_dict(other.state_dict())
        check()
        torch.testing.assert_close(conv.inverse(y), other.inverse(y))
        for p in conv.parameters():
            p.data = p.data * 1.5
        check()
    optimizer = torch.optim.SGD(conv.parameters(), 0.1)
    conv(y)[0].square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        check()
    torch.testing.assert_close(copy.deepcopy(conv).inverse(y), conv.inverse(y))
    x, _ = conv.inverse(y)  # with gradients it is not taken from the cache
    assert all(
        g.abs().sum() > 0 for g in torch.autograd.grad(x.square().sum(), list(conv.parameters()))
    )


def test_a_singular_convolution_is_refused():
    conv = pf.nn.InvertibleConv1x1(3)
    with torch.no_grad():
        conv.weight[1] = conv.weight[0]
        conv.weight[2] = 0
    for call in (conv, conv.inverse):
        with pytest.raises(ValueError, match="weight of InvertibleConv1x1 is singular"):
            call(torch.randn(2, 3))


@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 2, 2)])
def test_autocast_reaches_the_network_alone(shape, lu):
    """What the flow carries stays float32, so that it comes back as exactly as without."""
    torch.manual_seed(0)
    network = nn.Linear(2, 4) if len(shape) == 2 else nn.Conv2d(2, 4, 3, 1, 1)
    step = pf.nn.GlowStep(4, network, lu=lu)
    x = torch.randn(shape)
    step.actnorm.init(3 * torch.randn(50, *shape[1:]) + 1)
    with torch.autocast("cpu", torch.bfloat16):
        y, logdet = step(x)
        back, _ = step.inverse(y)
        z, log = step.conv(x)
        grads = torch.autograd.grad(
            (step(x)[0].square().sum()), [step.actnorm.bias, *step.conv.parameters()]
        )
    assert y.dtype == z.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((z, log), step.conv(x))
    # The network's rounding is all that is left of bfloat16's.
    torch.testing.assert_close(y, step(x)[0], rtol=0.02, atol=0.05)
    exact = torch.autograd.grad(
        step(x)[0].square().sum(), [step.actnorm.bias, *step.conv.parameters()]
    )
    torch.testing.assert_close(grads, exact, rtol=0.02, atol=0.2)


def test_squeeze_and_split():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    squeeze = pf.nn.Squeeze()
    y, logdet = squeeze(x)
    assert y.shape == (2, 12, 2, 3)
    assert y[0, :4, 0, 0].tolist() == [0.0, 1.0, 6.0, 7.0]
    assert torch.equal(squeeze.inverse(y)[0], x)
    assert torch.equal(logdet, torch.zeros(2))
    first, second = pf.nn.split(y)
    assert torch.equal(torch.cat((first, second), 1), y)
    with pytest.raises(ValueError, match="even number of channels"):
        pf.nn.split(x)
    with pytest.raises(ValueError, match="multiples of 2"):
        squeeze(x[..., :5])


def test_uniform_dequantisation():
    layer = pf.nn.UniformDequantize(256)
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    y, logdet = layer(x, seed=1)
    assert torch.equal(layer.inverse(y)[0], x.float())
    assert 0 <= y.min() < y.max() < 1
    # Uniform bytes under a uniform density on [0, 1): exactly 8 bits each.
    torch.testing.assert_close(-logdet / 64 / math.log(2), torch.full((4,), 8.0))
    assert torch.equal(y, layer(x, seed=1)[0])
    assert torch.equal(y[2:], layer(x[2:], seed=1, sample_offset=2)[0])
    fraction = y.double() * 256 - x.double()
    assert 0.45 < fraction.mean() < 0.55
    for levels in (5, 10, 256):  # also where 1 / levels is no float
        layer = pf.nn.UniformDequantize(levels)
        for dtype in (torch.float64, torch.bfloat16):
            x = torch.arange(levels, dtype=dtype).repeat(1, 20_000 // levels)
            for u in (torch.zeros(()), torch.ones(()), torch.rand(())):
                y = layer._place(x.to(torch.promote_types(dtype, torch.float32)), u)
                assert torch.equal(layer.inverse(y)[0].to(dtype), x)
            assert layer(x)[0].max() < 1


class Shift(nn.Module):
    def forward(self, x, condition=None):
        return 0.5 * x + 0.3 * condition, x.new_full((x.size(0),), math.log(0.5) * x[0].numel())


def test_variational_dequantisation_is_a_density_over_u():
    """-log q(u | x) against the closed form: u is the logistic function of a normal number."""
    layer = pf.nn.VariationalDequantize(Shift(), levels=8)
    x = torch.randint(0, 8, (500, 3), generator=torch.Generator().manual_seed(0)).double()
    y, logdet = layer(x, seed=3)
    u = y * 8 - x
    v = u.logit()
    normal = torch.distributions.Normal(0.3 * x / 8, 0.5)
    log_q = (normal.log_prob(v) - u.log() - (-u).log1p()).sum(1)
    torch.testing.assert_close(logdet, -3 * math.log(8) - log_q, rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.inverse(y)[0], x)


BAD = [
    (lambda: pf.nn.AffineCoupling(5, nn.Identity()), "channels must be even for an even split, got 5"),
    (lambda: pf.nn.AffineCoupling(4, nn.Identity(), mask=[1, 0, 1, 0]), "mask must be 4 booleans"),
    (lambda: pf.nn.AffineCoupling(2, nn.Identity(), mask=[True, True]), "mask must transform some"),
    (lambda: pf.nn.AffineCoupling(4, nn.Identity(), scale="ex"), "did you mean 'exp'"),
    (lambda: pf.nn.AffineCoupling(4, nn.Identity())(torch.zeros(2, 4)), r"network must give shape \(2, 4\)"),
    (lambda: pf.nn.AffineCoupling(4, nn.Identity())(torch.zeros(2, 3)), "x must have 4 channels"),
    (lambda: pf.nn.SplineCoupling(4, nn.Identity(), bins=2000), "min_bin_width must be positive and at most 0.0005"),
    (lambda: pf.nn.SplineCoupling(4, nn.Identity())(torch.zeros(2, 4)), r"network must give shape \(2, 46\)"),
    (lambda: pf.nn.GlowStep(3, nn.Identity()), "channels must be even, got 3"),
    (lambda: pf.nn.ActNorm(0), "channels must be at least 1"),
    (lambda: pf.nn.ActNorm(2).init(torch.zeros(0, 2)), "batch must not be empty"),
    (lambda: pf.nn.UniformDequantize(1), "levels must be at least 2"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
