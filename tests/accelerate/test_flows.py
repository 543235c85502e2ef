"""Flows made by the constructors of nflows, normflows and zuko."""

import copy
import warnings

import nflows.transforms
import normflows
import pytest
import torch
import zuko
from flow_points import WIDTH, points, stirred
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import ConvResidualNet, ResidualNet
from same import check, close, outputs_and_gradients

import pyfastgan as pf


def mask(k, width=WIDTH):
    return torch.tensor([(-1) ** (j + k) for j in range(width)])


def net(i, o):
    return ResidualNet(i, o, hidden_features=16, num_blocks=1)


def nflows_nsf(layers=10):
    transforms = []
    for k in range(layers):
        transforms += [
            nflows.transforms.RandomPermutation(WIDTH),
            nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
                mask(k), net, num_bins=5, tails="linear", tail_bound=3.0
            ),
        ]
    return Flow(nflows.transforms.CompositeTransform(transforms), StandardNormal([WIDTH]))


def nflows_others():
    t = nflows.transforms
    return Flow(
        t.CompositeTransform(
            [
                t.AffineCouplingTransform(mask(0), net),
                t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    WIDTH, 16, num_bins=4, tails="linear", tail_bound=2.0, num_blocks=1
                ),
                t.MaskedAffineAutoregressiveTransform(WIDTH, 16, num_blocks=1),
            ]
        ),
        StandardNormal([WIDTH]),
    )


def nflows_images():
    t = nflows.transforms
    turned = t.OneByOneConvolution(4, identity_init=False)
    turned.permutation._permutation.copy_(torch.tensor([1, 2, 3, 0]))  # not its own inverse
    transform = t.CompositeTransform(
        [
            turned,
            t.PiecewiseRationalQuadraticCouplingTransform(
                mask(0, 4),
                lambda i, o: ConvResidualNet(i, o, hidden_channels=8, num_blocks=1),
                num_bins=3,
                tails="linear",
                tail_bound=2.0,
            ),
            t.AffineCouplingTransform(
                mask(1, 4), lambda i, o: ConvResidualNet(i, o, hidden_channels=8, num_blocks=1)
            ),
        ]
    )
    return Flow(transform, StandardNormal([4, 3, 5]))


def nll(x):
    return lambda m: -m.log_prob(x).mean()


COUPLING = "PiecewiseRationalQuadraticCouplingTransform"
NFLOWS = {
    "nsf": (nflows_nsf, points(), {COUPLING}),
    "others": (
        nflows_others,
        points(),
        {
            "AffineCouplingTransform",
            "MaskedPiecewiseRationalQuadraticAutoregressiveTransform",
            "MaskedAffineAutoregressiveTransform",
        },
    ),
    "images": (
        nflows_images,
        points(12, 60).reshape(12, 4, 3, 5),
        {COUPLING, "OneByOneConvolution", "AffineCouplingTransform"},
    ),
}


@pytest.mark.parametrize("name", NFLOWS)
def test_nflows(name):
    make, x, kinds = NFLOWS[name]
    torch.manual_seed(0)
    model = stirred(make())
    fast = copy.deepcopy(model)
    pf.accelerate(fast)
    # Sampling goes the other way.
    with torch.no_grad():
        z, forward = model._transform(x)
        back, inverse = fast._transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(inverse, -forward, rtol=1e-3, atol=2e-2)
    check(model, nll(x), kinds)


def test_nflows_on_the_unit_interval():
    """Without tails inputs outside raise the library's own error."""
    torch.manual_seed(0)
    make = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform
    model = stirred(make(mask(0), net, num_bins=5))
    fast = copy.deepcopy(model)
    assert pf.accelerate(fast).replaced
    x = torch.rand(20, WIDTH)
    for ours, theirs in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for m in (model, fast):
        with pytest.raises(nflows.transforms.InputOutsideDomain):
            m(x + 0.5)


def normflows_spline():
    flows = []
    for k in range(2):
        flows += [
            normflows.flows.CoupledRationalQuadraticSpline(
                WIDTH, 1, 16, num_bins=4, reverse_mask=bool(k)
            ),
            normflows.flows.AutoregressiveRationalQuadraticSpline(WIDTH, 1, 16, num_bins=4),
        ]
    return normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(WIDTH, trainable=False), flows
    )


def normflows_affine():
    flows = []
    for k, scale_map in enumerate(("exp", "sigmoid", "sigmoid_inv")):
        nets = [normflows.nets.MLP([WIDTH, 16, WIDTH]) for _ in "st"]
        flows += [
            normflows.flows.AffineCouplingBlock(
                normflows.nets.MLP([WIDTH // 2, 16, WIDTH]), scale_map=scale_map
            ),
            normflows.flows.MaskedAffineFlow((mask(k) > 0).float(), *nets),
            normflows.flows.Permute(WIDTH),
        ]
    return normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(WIDTH, trainable=False), flows
    )


def normflows_glow():
    base, merges, flows = [], [], []
    for i in range(2):
        channels = 3 * 2 ** (3 - i)
        blocks = [normflows.flows.GlowBlock(channels, 8, use_lu=bool(k)) for k in range(2)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        if i:
            merges.append(normflows.flows.Merge())
        shape = (3 * 2 ** (2 - i + (not i)), 8 // 2 ** (2 - i), 8 // 2 ** (2 - i))
        base.append(normflows.distributions.DiagGaussian(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = normflows.MultiscaleFlow(base, flows, merges, class_cond=False)
    model.log_prob(
        points(8, 192).reshape(8, 3, 8, 8), None
    )  # its normalisations take the first batch
    return model


NORMFLOWS = {
    "spline": (
        normflows_spline,
        points(),
        {
            "PiecewiseRationalQuadraticCoupling",
            "PiecewiseRationalQuadraticCDF",
            "MaskedPiecewiseRationalQuadraticAutoregressive",
        },
        0.2,
    ),
    "affine": (normflows_affine, points(), {"AffineCoupling", "MaskedAffineFlow"}, 0.05),
    "glow": (
        normflows_glow,
        points(8, 192).reshape(8, 3, 8, 8),
        {"AffineCoupling", "GlowBlock"},
        0.02,
    ),
}


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
@pytest.mark.parametrize("name", NORMFLOWS)
def test_normflows(name):
    make, x, kinds, by = NORMFLOWS[name]
    torch.manual_seed(0)
    model = stirred(make(), by)
    twin = copy.deepcopy(model)
    classes = (None,) if name == "glow" else ()
    check(model, lambda m: -m.log_prob(x, *classes).mean(), kinds)
    fast = copy.deepcopy(twin)
    pf.accelerate(fast)
    if name != "glow":
        z = points(seed=3)
        for ours, theirs in zip(
            fast.forward_and_log_det(z), twin.forward_and_log_det(z), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        return
    block, other = fast.flows[1][0], twin.flows[1][0]
    z = points(4, 192).reshape(4, 12, 4, 4)
    for ours, theirs in zip(block(z), other(z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_uninitialised_glow_block_takes_its_first_batch():
    torch.manual_seed(0)
    block = normflows.flows.GlowBlock(4, 8)
    fast = copy.deepcopy(block)
    pf.accelerate(fast)
    x = points(5, 64).reshape(5, 4, 4, 4)
    for _ in range(2):
        for ours, theirs in zip(fast.inverse(x), block.inverse(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert bool(fast.flows[-1].data_dep_init_done)


ZUKO = {
    "autoregressive": (
        lambda: zuko.flows.NSF(WIDTH, transforms=2, hidden_features=(16,), bins=4),
        None,
    ),
    "coupling": (
        lambda: zuko.flows.NICE(
            WIDTH,
            context=2,
            transforms=2,
            hidden_features=(16,),
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(4,), (4,), (3,)],
        ),
        points(width=2),
    ),
    "circular": (lambda: zuko.flows.NCSF(WIDTH, transforms=2, hidden_features=(16,), bins=4), None),
}


@pytest.mark.parametrize("name", ZUKO)
def test_zuko(name):
    make, context = ZUKO[name]
    torch.manual_seed(0)
    model = make()
    twin = copy.deepcopy(model)
    x = points() if name != "circular" else points().clamp(-3.1, 3.1)
    kinds = {"GeneralCouplingTransform" if name == "coupling" else "MaskedAutoregressiveTransform"}

    def loss(m):
        return -(m() if context is None else m(context)).log_prob(x).mean()

    check(model, loss, kinds)
    fast = copy.deepcopy(twin)
    pf.accelerate(fast)
    t, f = (m.transform() if context is None else m.transform(context) for m in (twin, fast))
    z = t(x)
    torch.testing.assert_close(f(x), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(f.inv(z), t.inv(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        f.inv.call_and_ladj(z)[1], t.inv.call_and_ladj(z)[1], rtol=1e-3, atol=1e-3
    )


def test_zuko_element_by_element():
    torch.manual_seed(0)
    make = zuko.flows.gaussianization.ElementWiseTransform
    shapes = [(4,), (4,), (3,)]
    model = make(3, univariate=zuko.transforms.MonotonicRQSTransform, shapes=shapes)
    fast = copy.deepcopy(model)
    assert pf.accelerate(fast).replaced
    x = points(9, 3)
    for ours, theirs in zip(fast().call_and_ladj(x), model().call_and_ladj(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    base = fast().base
    assert base.bins == 4
    torch.testing.assert_close(base.horizontal, model().base.horizontal)


def test_what_zuko_makes_otherwise():
    # A reason of one line, a composition not among them.
    model = zuko.flows.NAF(WIDTH, transforms=1)
    assert [s.reason for s in pf.accelerate(model).skipped] == [
        "its univariate transformation is MNN"
    ]


@pytest.mark.parametrize(
    "make", [lambda: nflows_nsf(2), normflows_spline, ZUKO["autoregressive"][0]]
)
def test_a_penalty_on_the_score(make):
    torch.manual_seed(0)
    model = make()
    fast = copy.deepcopy(model)
    assert pf.accelerate(fast).replaced
    x = points(6).requires_grad_()

    def loss(m):
        density = m() if isinstance(m, zuko.lazy.Flow) else m
        (score,) = torch.autograd.grad(density.log_prob(x).sum(), x, create_graph=True)
        return score.square().mean()

    (ours, a), (theirs, b) = (outputs_and_gradients(m, loss) for m in (fast, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    close(a, b, 1e-3)
