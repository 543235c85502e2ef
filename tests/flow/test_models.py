"""Whole flows: densities against autograd's Jacobian, round trips, nflows and zuko with the same weights, what is
stored with a model, and bad input."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import pyfastgan as pf
from pyfastgan.flow.layers import CheckerboardCoupling, Permutation, initialize
from pyfastgan.flow.networks import MADE, ResidualNet

IMAGE = (1, 4, 4)  # 16 numbers: a Jacobian of 16 x 16, two scales
SMALL = {"width": 6, "scales": 2}
MODELS = {
    "realnvp": (pf.flow.RealNVP, 3, {"width": 8}),
    "realnvp, sigmoid": (pf.flow.RealNVP, 4, {"width": 8, "layers": 2, "scale": "sigmoid"}),
    "nsf": (pf.flow.NSF, 2, {"width": 8, "affine": 2}),
    "nsf, lu": (pf.flow.NSF, 3, {"width": 8, "layers": 2}),
    "nsf, autoregressive": (pf.flow.NSF, 3, {"width": 8, "layers": 2, "autoregressive": True}),
    "nsf, random order": (pf.flow.NSF, 5, {"width": 8, "layers": 2, "mixing": "random"}),
    "maf": (pf.flow.MAF, 3, {"width": 8, "layers": 3, "actnorm": True}),
    "maf, tanh": (pf.flow.MAF, 3, {"width": 8, "layers": 2, "scale": "tanh"}),
    "iaf": (pf.flow.IAF, 3, {"width": 8, "layers": 3}),
    "images: realnvp": (pf.flow.RealNVP, IMAGE, SMALL),
    "images: realnvp of colours": (pf.flow.RealNVP, (3, 2, 4), {"width": 6, "scales": 1}),
    "images: glow": (pf.flow.Glow, IMAGE, {**SMALL, "steps": 2}),
    "images: glow, lu, stored": (
        pf.flow.Glow,
        IMAGE,
        {**SMALL, "steps": 1, "lu": True, "recompute": False, "scale": "softclamp"},
    ),
    "images: nsf": (pf.flow.NSF, IMAGE, {**SMALL, "steps": 1, "bins": 4}),
}


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name, **options):
    """A model away from where it starts, with ActNorms initialised; float64."""
    kind, shape, own = MODELS[name]
    torch.manual_seed(0)
    model = kind(shape, **own, **options).double()
    for k, parameter in enumerate(model.parameters()):
        parameter.data += 0.2 * seeded(*parameter.shape, seed=k)
    return initialized(model)


def initialized(model):
    given = None
    if model.classes or model.condition:
        given = seeded(40, model.classes or model.condition)
    initialize(model.transform, points(model, 40), given)
    return model


def points(model, count, seed=1):
    """What the transform takes: for images numbers between 0 and 1."""
    x = seeded(count, *model.shape, seed=seed)
    return x if model.dequantize is None else torch.sigmoid(x)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_logdet_and_inverse(name, conditional):
    model = made(name, condition=2 if conditional else None)
    x = points(model, 2, seed=5)
    given = seeded(2, 2, seed=6) if conditional else None
    z, logdet = model.transform(x, given)
    assert z.shape == (2, model.size)
    back, other = model.transform.inverse(z, given)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other, -logdet, rtol=1e-9, atol=1e-9)
    own = None if given is None else given[:1]
    jacobian = torch.autograd.functional.jacobian(lambda t: model.transform(t, own)[0], x[:1])
    exact = torch.linalg.slogdet(jacobian.reshape(model.size, model.size))[1]
    torch.testing.assert_close(logdet[0], exact, rtol=0, atol=1e-9)
    if conditional:
        assert not torch.allclose(z[0], model.transform(x, given.flip(0))[0][0])
    if model.dequantize is None:  # the density is the base's times that
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        torch.testing.assert_close(model.log_prob(x, given), normal + logdet)
        torch.testing.assert_close(
            model.bits_per_dim(x, given), -(normal + logdet) / model.size / math.log(2)
        )


def nflows_like(features, coupling):
    """A flow of nflows, and ours with the same weights, both far from the identity."""
    from nflows import transforms as t
    from nflows.nn.nets import ResidualNet as TheirNet

    torch.manual_seed(1)
    width, bins = 16, 6
    theirs, ours = [], []
    for k in range(3):
        if coupling:
            mask = torch.arange(features) % 2 == (1 if k % 2 == 0 else 0)
            layer = t.PiecewiseRationalQuadraticCouplingTransform(
                mask.long(),
                lambda i, o: TheirNet(i, o, hidden_features=width, num_blocks=2),
                num_bins=bins, tails="linear", tail_bound=3.0,
            )  # fmt: skip
            net = layer.transform_net
            own = ResidualNet(int((~mask).sum()), int(mask.sum()) * (3 * bins - 1), width=width)
            mine = pf.nn.SplineCoupling(features, own, bins=bins, mask=mask)
        else:
            layer = t.MaskedAffineAutoregressiveTransform(features, hidden_features=width)
            net = layer.autoregressive_net
            mine = pf.flow.MAF(features, layers=1, width=width).transform[1]
            theirs.append(t.ReversePermutation(features))
            ours.append(Permutation(list(range(features))[::-1]))
        for parameter in net.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        state = {key: v for key, v in net.state_dict().items() if "degrees" not in key}
        mine.network.load_state_dict(state)
        if coupling:  # nflows divides the logits of widths and heights by the root of the width
            for value in mine.network.final_layer.parameters():
                rows = value.data.view(-1, 3 * bins - 1, *value.shape[1:])
                rows[:, : 2 * bins] /= width**0.5
        theirs.append(layer)
        ours.append(mine)
    flow = pf.flow.Flow(pf.flow.Chain(ours), (features,)).double()
    return t.CompositeTransform(theirs).double(), flow


@pytest.mark.parametrize("coupling", [True, False], ids=["nsf", "maf"])
def test_the_numbers_and_gradients_of_nflows(coupling):
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    theirs, ours = nflows_like(5, coupling)
    x = 1.5 * seeded(40, 5)
    torch.testing.assert_close(ours.transform(x), theirs(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.transform.inverse(x), theirs.inverse(x), rtol=1e-8, atol=1e-8)
    flow = Flow(theirs, StandardNormal([5]))
    found = []
    for log_prob, model in ((flow.log_prob, theirs), (ours.log_prob, ours)):
        leaf = x.clone().requires_grad_()
        nll = -log_prob(leaf)
        last = [p for p in model.parameters() if p.dim() == 2]
        # Of the first layers: what the scaled last ones got is scaled too.
        found.append((nll, *torch.autograd.grad(nll.sum(), [leaf, last[0], last[1]])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-7)


def test_the_numbers_of_zuko():
    """Its hypernetworks serve as ours."""
    import zuko
    from zuko.lazy import LazyComposedTransform

    torch.manual_seed(0)
    theirs = zuko.flows.NSF(3, transforms=2, hidden_features=(16, 16)).double()
    composed = theirs.transform
    assert isinstance(composed, LazyComposedTransform)
    ours = pf.flow.Flow(
        pf.flow.Chain(
            pf.flow.layers.SplineAutoregressive(t.hyper, tail_bound=5.0, parameterisation="zuko")
            for t in composed.transforms
        ),
        (3,),
    )
    x = 2 * seeded(30, 3)
    torch.testing.assert_close(ours.log_prob(x), theirs().log_prob(x), rtol=1e-9, atol=1e-9)
    z = theirs().transform(x)
    torch.testing.assert_close(ours.encode(x), z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.decode(z), x, rtol=1e-7, atol=1e-7)


def test_made_sees_what_comes_before_and_nothing_else():
    for features, width in ((1, 4), (2, 4), (5, 4), (5, 9)):
        torch.manual_seed(0)
        net = MADE(features, 3, width=width).double()
        for k, parameter in enumerate(net.parameters()):
            parameter.data += seeded(*parameter.shape, seed=k)
        x = seeded(1, features)
        jacobian = torch.autograd.functional.jacobian(net, x).reshape(features, 3, features)
        seen = jacobian.abs().sum(1) > 0
        assert torch.equal(seen, torch.ones(features, features).tril(-1).bool())


def test_identity_on_uniform_bytes_is_eight_bits():
    shape = (3, 8, 8)
    model = pf.flow.Flow(
        pf.flow.Flatten(shape), shape, base="uniform", dequantize=pf.nn.UniformDequantize(256)
    )
    bytes_ = torch.randint(0, 256, (50, *shape), generator=torch.Generator().manual_seed(0))
    images = bytes_ / 127.5 - 1
    bits = model.bits_per_dim(images, seed=1)
    torch.testing.assert_close(bits, torch.full((50,), 8.0), rtol=0, atol=1e-5)
    made = model.sample(4, seed=2)
    assert made.shape == (4, *shape)
    whole = (made + 1) * 127.5
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-3)
    # An image goes to its latent vector and back without a change.
    torch.testing.assert_close(model.decode(model.encode(images, seed=3)), images)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_images_come_back_from_their_latent_vectors(levels):
    torch.manual_seed(0)
    for kind, options in ((pf.flow.Glow, {"steps": 2}), (pf.flow.RealNVP, {}), (pf.flow.NSF, {})):
        model = kind((1, 8, 8), width=8, levels=levels, **options)
        images = torch.randint(0, levels, (6, 1, 8, 8)) / ((levels - 1) / 2) - 1
        model.init(images)
        torch.testing.assert_close(model.decode(model.encode(images, seed=1)), images)
        # No probability is above 1; at the start none is absurd either.
        assert (model.log_prob(images, seed=1) < 0).all()


def test_variational_dequantisation_learns_and_is_a_bound():
    """Black and white pixels, each by a coin: a bit a pixel at best, but for what is learned by heart."""
    torch.manual_seed(0)
    model = pf.flow.RealNVP((1, 4, 4), width=8, scales=1, levels=2, dequantization="variational")
    images = torch.randint(0, 2, (64, 1, 4, 4)) * 2.0 - 1
    model.init(images)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    bits = []
    for step in range(40):
        optimizer.zero_grad()
        loss = model.bits_per_dim(images, seed=step).mean()
        loss.backward()
        optimizer.step()
        bits.append(loss.item())
    assert 0.9 < bits[-1] < bits[0] - 0.08
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.dequantize.parameters())


@pytest.mark.parametrize("classes", [None, 3])
def test_recomputed_gradients_are_the_stored_ones(classes):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = pf.flow.Glow(
            (1, 8, 8), steps=4, width=8, levels=17, classes=classes, recompute=recompute
        ).double()
        for k, parameter in enumerate(model.parameters()):
            parameter.data += 0.05 * seeded(*parameter.shape, seed=k)
        images = torch.randint(0, 17, (6, 1, 8, 8)).double() / 8 - 1
        labels = None if classes is None else torch.arange(6) % classes
        model.init(images, labels, seed=0)
        nll = -model(images, labels, seed=1).mean()
        found.append((nll, *torch.autograd.grad(nll, list(model.parameters()))))
    assert all(g.abs().sum() > 0 for g in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["nsf, random order", "maf", "images: glow", "images: realnvp"])
def test_a_loaded_state_is_what_samples_are_drawn_from(name):
    """Also the permutations, and an inverse that was computed before."""
    model = made(name).float()
    kind, shape, own = MODELS[name]
    torch.manual_seed(5)
    other = kind(shape, **own)
    if name != "nsf, random order":
        with pytest.raises(RuntimeError, match="ActNorm is not initialized"):
            other.sample(3, seed=1)
        initialize(other.transform, points(other, 40).float())
    before = other.sample(3, seed=1)
    other.load_state_dict(model.state_dict())
    after = other.sample(3, seed=1)
    torch.testing.assert_close(after, model.sample(3, seed=1))
    assert not torch.allclose(after, before)


def test_samples_depend_on_their_number_and_temperature_alone():
    model = pf.flow.NSF(2, width=8)
    x = model.sample(9, seed=3)
    torch.testing.assert_close(model.sample(4, seed=3), x[:4])
    for share in (0.0, 0.5):  # it starts as the identity
        cool = model.sample(4, seed=3, temperature=share)
        torch.testing.assert_close(cool, share * x[:4], rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    first = model.sample(4)
    assert not torch.allclose(first, model.sample(4))
    big = model.sample(300_000, seed=3)  # several parts
    torch.testing.assert_close(big[:9], x)
    assert big.std().item() == pytest.approx(1, abs=0.01)
    assert len(model.sample(0)) == 0


def test_classes_are_taken_in_turns():
    torch.manual_seed(0)
    model = pf.flow.NSF(2, width=8, classes=3)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = model.sample(6, seed=1)
    torch.testing.assert_close(x, model.sample(6, seed=1, condition=torch.arange(6) % 3))
    assert not torch.allclose(x, model.sample(6, seed=1, condition=torch.zeros(6).long()))


def test_log_prob_is_summed_in_float32_under_bfloat16():
    model = made("nsf, lu").float()
    x = points(model, 50).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = model.log_prob(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, model.log_prob(x), rtol=0.05, atol=0.5)


def test_the_page_shows_the_table_that_the_proof_wrote():
    root = Path(__file__).parents[2]
    table = (root / "benchmarks" / "results" / "flow_round_trips.md").read_text()
    assert table.startswith("| model | layers | state | float64 |")
    assert table in (root / "docs" / "flows.md").read_text()


BAD = [
    (lambda: pf.flow.NSF(1), "features must be at least 2 for a coupling, got 1"),
    (lambda: pf.flow.NSF(2, bins=2000), "min_bin_width must be positive and at most 0.0005"),
    (lambda: pf.flow.NSF(2, mixing="rotation"), "mixing must be one of none, reverse, random, lu"),
    (lambda: pf.flow.NSF(2, parameterisation="nflow"), "did you mean 'nflows'"),
    (lambda: pf.flow.MAF(9, width=4), "width must be at least features - 1 = 8"),
    (lambda: pf.flow.Glow((1, 6, 6), scales=2), "must be multiples of 4 for 2 scales, got 6 x 6"),
    (lambda: pf.flow.Glow((8, 8)), r"shape must be \(C, H, W\)"),
    (lambda: pf.flow.Glow((1, 8, 8), dequantization="normal"), "dequantization must be one of"),
    (lambda: pf.flow.NSF(2, classes=3, condition=2), "classes or condition, not both"),
    (lambda: pf.flow.NSF(2)(torch.zeros(4, 3)), r"x must be of shape \(N, 2\), got \(4, 3\)"),
    (lambda: pf.flow.NSF(2).decode(torch.zeros(4, 3)), r"z must be of shape \(N, 2\)"),
    (lambda: pf.flow.NSF(2)(torch.zeros(4, 2), torch.zeros(4)), "condition needs a conditional"),
    (lambda: pf.flow.NSF(2, classes=3)(torch.zeros(4, 2)), "condition is needed by a conditional"),
    (lambda: pf.flow.NSF(2, classes=3)(torch.zeros(1, 2), torch.tensor([3])), r"lie in \[0, 3\), got 3"),
    (lambda: pf.flow.NSF(2, classes=3)(torch.zeros(1, 2), torch.zeros(1)), "condition must be classes, int64"),
    (lambda: pf.flow.NSF(2, condition=3)(torch.zeros(4, 2), torch.zeros(4, 2)), r"condition must be of shape \(4, 3\)"),
    (lambda: pf.flow.Glow((1, 8, 8))(torch.full((1, 1, 8, 8), 2.0)), r"images in \[-1, 1\], got 2 to 2"),
    (lambda: pf.flow.NSF(2).sample(2, temperature=-1.0), "temperature must be at least 0"),
    (lambda: pf.flow.Flow(nn.Identity(), (2,), base="uniform").sample(2, temperature=0.5), "temperature must be 1"),
    (lambda: pf.flow.Flow(nn.Identity(), (2,), base="gauss"), "base must be one of normal, uniform"),
    (lambda: Permutation([0, 2]), "order must hold each number from 0 to D - 1 once"),
    (lambda: CheckerboardCoupling((1, 4, 4), nn.Identity(), scale="sigmoid"), "scale must be one of"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
