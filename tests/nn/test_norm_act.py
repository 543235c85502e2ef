"""NormAct computes what the torch layer computes that it replaces, and carries the same state."""

import copy
import pickle

import pytest
import torch
from torch import nn

import pyfastgan as pf

PAIRS = {
    "batch": (lambda **k: nn.BatchNorm2d(6, **k), {}),
    "instance": (lambda **k: nn.InstanceNorm2d(6, **k), {}),
    "group": (lambda **k: nn.GroupNorm(3, 6, **k), {"groups": 3}),
    "layer": (lambda **k: nn.GroupNorm(1, 6, **k), {}),
}


@pytest.mark.parametrize("norm", PAIRS)
def test_it_is_the_layer_that_it_replaces(norm):
    torch.manual_seed(0)
    make, extra = PAIRS[norm]
    theirs = make(eps=1e-4).double()
    ours = pf.nn.NormAct(norm, 6, act="silu", eps=1e-4, dtype=torch.float64, **extra)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(3):
        x = torch.randn(4, 6, 3, 5, dtype=torch.float64) + 2
        torch.testing.assert_close(ours(x), nn.functional.silu(theirs(x)))
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        for a, b in zip(copied.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(copied.eval()(x), nn.functional.silu(theirs.eval()(x)))
        theirs.train()


@pytest.mark.parametrize(("norm", "momentum"), [("batch", 0.3), ("batch", None), ("instance", 0.3)])
def test_running_statistics(norm, momentum):
    """Followed with either kind of momentum, in float32, for twenty steps."""
    torch.manual_seed(0)
    options = {"affine": True, "track_running_stats": True, "momentum": momentum}
    theirs, ours = PAIRS[norm][0](**options), pf.nn.NormAct(norm, 6, act="linear", **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for _ in range(20):
        x = torch.randn(4, 6, 3, 5) + 2
        ours(x), theirs(x)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_points_are_layer_norm_s():
    ours, theirs = pf.nn.NormAct("layer", 7, act="linear"), nn.LayerNorm(7)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(3, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("spectral", 6), {}, "norm must be one of"),
        (("batch", 0), {}, "channels must be at least 1"),
        (("batch", 6), {"act": "rleu"}, "did you mean 'relu'"),
        (("group", 6), {"groups": 4}, "groups must divide channels=6, got 4"),
        (("group", 6), {}, "groups must divide channels=6, got None"),
        (("layer", 6), {"groups": 2}, "groups belongs to norm='group'"),
        (("instance", 6), {"momentum": None}, "momentum=None belongs to batch norm"),
        (("layer", 6), {"track_running_stats": True}, "track_running_stats belongs to"),
    ],
)
def test_bad_options_are_refused(arguments, options, says):
    with pytest.raises(ValueError, match=says):
        pf.nn.NormAct(*arguments, **options)


def test_it_says_what_it_is():
    layer = pf.nn.NormAct("group", 6, groups=2, slope=0.1)
    assert repr(layer) == "NormAct('group', 6, groups=2, act='leaky_relu', slope=0.1, eps=1e-05)"
