"""Of every library: parts with hooks, with weight and spectral norm, shared, in half precision, and subclasses of them
are served as they were, or left alone with a reason."""

import copy

import pytest
import torch
from test_tools import KINDS, Density
from torch import nn

import pyfastgan as pf


def pair(kind):
    torch.manual_seed(0)
    model = Density(kind)
    with torch.no_grad():  # networks that begin at zero would make every part the identity
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model, torch.randn(16, 4)


def served(model):
    """What `accelerate` replaced, by name."""
    return {r.name: r for r in pf.accelerate(model).replaced}


def same(fast, model, x, tolerance=1e-4):
    for m in (fast, model):
        m.zero_grad()
        m(x).backward()
    torch.testing.assert_close(fast(x), model(x), rtol=tolerance, atol=tolerance)
    for (name, a), b in zip(fast.named_parameters(), model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks(kind):
    """Those of every part are called as often as before, and what they return counts."""
    model, x = pair(kind)
    fast = copy.deepcopy(model)
    (name, *_) = served(copy.deepcopy(model))
    calls = {}
    for m in (fast, model):
        calls[m] = []
        for part in m.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.register_forward_hook(lambda p, i, y, m=m: (calls[m].append(1), 0.5 * y)[1])
        m.get_submodule(name).register_forward_pre_hook(lambda p, i, m=m: calls[m].append(2))
    pf.accelerate(fast)
    same(fast, model, x)
    assert calls[fast] == calls[model]


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_computed(kind, norm):
    """A weight is made anew in every call, from parameters that go on being trained."""
    model, x = pair(kind)
    for part in list(model.modules()):
        # zuko's and nflows' masked layers compute their weight themselves.
        if type(part) in (nn.Linear, nn.Conv2d):
            getattr(torch.nn.utils.parametrizations, norm)(part)
    model.eval()  # spectral norm iterates in training
    fast = copy.deepcopy(model)
    pf.accelerate(fast)
    same(fast, model, x)
    for m in (fast, model):
        torch.optim.SGD(m.parameters(), lr=0.1).step()
    same(fast, model, x, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_shared(kind):
    """One part at two places is replaced once, and stays one."""
    model, x = pair(kind)
    fast = copy.deepcopy(model)
    both = nn.ModuleList([fast, fast])
    names = served(both)
    assert names
    assert all(name.startswith("0.") for name in names)
    same(both[1], model, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_other_precision(kind, dtype):
    """Turned into it before or afterwards: the library's own bits in half precision."""
    model, x = pair(kind)
    before, after = copy.deepcopy(model).to(dtype), copy.deepcopy(model)
    pf.accelerate(before)
    pf.accelerate(after)
    after.to(dtype)
    expected = model.to(dtype)(x.to(dtype))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-10
    for m in (before, after):
        torch.testing.assert_close(m(x.to(dtype)), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("of_the_instance", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_of_its_own(kind, of_the_instance):
    """A subclass, and a forward that was put on the instance, are left alone."""
    model, x = pair(kind)
    (name, *_) = served(copy.deepcopy(model))
    part = model.get_submodule(name)
    kept = type(part)

    def own(*args, **options):
        return kept.forward(part, *args, **options)

    if of_the_instance:
        part.forward = own
    else:
        part.__class__ = type("Own", (kept,), {"forward": lambda self, *a, **o: own(*a, **o)})
    expected, before = model(x), type(part)
    report = pf.accelerate(model)
    assert name not in [r.name for r in report.replaced]
    assert name in [s.name for s in report.skipped]
    assert type(part) is before
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
