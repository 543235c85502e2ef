"""Flows made by the constructors of FrEIA."""

import copy

import FrEIA.framework
import FrEIA.modules
import pytest
import torch
from flow_points import WIDTH, points, stirred
from same import check, close, outputs_and_gradients
from torch import nn

import pyfastgan as pf


def freia_net(i, o):
    return nn.Sequential(nn.Linear(i, 16), nn.ReLU(), nn.Linear(16, o))


def freia_conv(i, o):
    return nn.Sequential(nn.Conv2d(i, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, o, 3, padding=1))


def freia(kind, images=False, **options):
    model = FrEIA.framework.SequenceINN(*((4, 3, 5) if images else (WIDTH,)))
    for _ in range(3):
        maker = freia_conv if images else freia_net
        model.append(getattr(FrEIA.modules, kind), subnet_constructor=maker, **options)
    return model


FREIA = {
    "all in one": ("AllInOneBlock", False, {}),
    "soft permutation": ("AllInOneBlock", False, {"permute_soft": True}),
    "reversed": (
        "AllInOneBlock",
        False,
        {"reverse_permutation": True, "global_affine_type": "EXP"},
    ),
    "householder": ("AllInOneBlock", False, {"learned_householder_permutation": 2}),
    "gin": ("AllInOneBlock", False, {"gin_block": True}),
    "images": ("AllInOneBlock", True, {"affine_clamping": 1.5}),
    "rnvp": ("RNVPCouplingBlock", False, {}),
    "glow": ("GLOWCouplingBlock", False, {"clamp": 1.7}),
    "glow, tanh": ("GLOWCouplingBlock", False, {"clamp_activation": "TANH"}),
    "one side": ("AffineCouplingOneSided", True, {}),
}


@pytest.mark.parametrize("name", FREIA)
def test_freia(name):
    kind, images, options = FREIA[name]
    torch.manual_seed(0)
    model = stirred(freia(kind, images, **options), 0.1)
    x = points(12, 60).reshape(12, 4, 3, 5) if images else points()

    def loss(m):
        z, logdet = m(x)
        return (0.5 * z.square().flatten(1).sum(1) - logdet).mean()

    # Its blocks hold functions that have no name, which pickle refuses, and with reflections a result that cannot be
    # copied once they were called, accelerated or not.
    fast = copy.deepcopy(model)
    if name == "householder":
        pf.accelerate(fast)
        (value, gradients), (expected, theirs) = (
            outputs_and_gradients(m, loss) for m in (fast, model)
        )
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        close(gradients, theirs)
        return
    check(model, loss, {kind} | ({"Sequential"} if images else set()), pickles=False, lr=1e-4)
    model.load_state_dict(fast.state_dict())
    pf.accelerate(fast)
    with torch.no_grad():
        for ours, theirs in zip(fast(x, rev=True), model(x, rev=True), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_freia_sees_a_permutation_that_is_loaded():
    torch.manual_seed(0)
    model, other = freia("AllInOneBlock"), freia("AllInOneBlock", permute_soft=True)
    x = points()
    pf.accelerate(model)
    model(x)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x)[0], other(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [False, True])
def test_freia_has_second_derivatives(images):
    torch.manual_seed(0)
    model = stirred(freia("AllInOneBlock", images), 0.1).double()
    x = (points(12, 60).reshape(12, 4, 3, 5) if images else points()).double().requires_grad_()
    fast = copy.deepcopy(model)
    pf.accelerate(fast)

    def gradients(m):
        z, logdet = m(x)
        wanted = [x, *(p for p in m.parameters() if p.requires_grad)]
        score = z.pow(3).flatten(1).sum(1) + logdet.square()
        first = torch.autograd.grad(score.sum(), wanted, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return *first, *torch.autograd.grad(penalty, wanted)

    for ours, theirs in zip(gradients(fast), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("images", [False, True])
def test_freia_under_torch_func(images):
    # Parameters that are not there to be looked at, rows one by one, and tangents.
    torch.manual_seed(0)
    model = stirred(freia("AllInOneBlock", images), 0.1)
    fast = copy.deepcopy(model)
    # Nothing is said of what only holds the blocks.
    assert not pf.accelerate(fast).skipped
    x = points(4, 60).reshape(4, 4, 3, 5) if images else points(4)

    def loss(parameters, x, m):
        z, logdet = torch.func.functional_call(m, parameters, (x,))
        return (0.5 * z.square().flatten(1).sum(1) - logdet).mean()

    results = []
    for m in (fast, model):
        parameters = dict(m.named_parameters())
        gradients = torch.func.grad(loss)(parameters, x, m)
        rows = torch.func.vmap(lambda row, p=parameters, m=m: loss(p, row[None], m))(x)
        jacobian = torch.func.jacfwd(lambda x, p=parameters, m=m: loss(p, x, m))(x)
        results.append({**gradients, "rows": rows, "jacobian": jacobian})
    close(*results)


def test_freia_leaves_a_matrix_alone_that_is_no_permutation():
    torch.manual_seed(0)
    model = freia("AllInOneBlock")
    for block in model.module_list:
        block.w_perm.data[1] = block.w_perm.data[
            0
        ]  # zeros and ones, a one in each row, but twice in a column
    fast, x = copy.deepcopy(model), points()
    pf.accelerate(fast)
    for ours, theirs in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
