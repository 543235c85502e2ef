"""Blocks compute what the layers they replace compute, and carry the same state."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

import pyfastgan as pf

ACTS = {
    "linear": None,
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "softplus": nn.Softplus(),
}


NORMS = {
    "batch": lambda channels: nn.BatchNorm2d(channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels),
    "group": lambda channels: nn.GroupNorm(2, channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
}


def plain(transposed, norm, act, bias, channels=(3, 5)):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers = [kind(*channels, 4, 2, 1, bias=bias)]
    if norm:
        layers.append(NORMS[norm](channels[1]))
    if ACTS[act] is not None:
        layers.append(ACTS[act])
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("transposed", [False, True])
def test_block_equals_the_layers_it_replaces(transposed, norm, act):
    torch.manual_seed(0)
    layers = plain(transposed, norm, act, bias=norm is None)
    kind = pf.nn.ConvTransposeBlock if transposed else pf.nn.ConvBlock
    block = kind(3, 5, 4, 2, 1, norm=norm, act=act).double()
    block.load_state_dict(layers.state_dict())
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        block.train(training)
        layers.train(training)
        ours, theirs = block(x), layers(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        cotangent = torch.randn_like(ours)
        for a, b in zip(
            torch.autograd.grad(ours, (x, *block.parameters()), cotangent),
            torch.autograd.grad(theirs, (x, *layers.parameters()), cotangent),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    for key, value in layers.state_dict().items():  # running statistics too
        torch.testing.assert_close(block.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    assert list(block.state_dict()) == list(layers.state_dict())


# In the middle of a network and at the image's edge.
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_norm_equals_torch_s_layer(transposed, norm, edge):
    torch.manual_seed(1)
    channels = ((10, 4) if transposed else (3, 10)) if edge else (3, 6)
    layers = plain(transposed, norm, "leaky_relu", True, channels)
    kind = pf.nn.ConvTransposeBlock if transposed else pf.nn.ConvBlock
    groups = 2 if norm == "group" else None
    block = kind(*channels, 4, 2, 1, norm=norm, groups=groups, act="leaky_relu", bias=True).double()
    with torch.no_grad():
        for p in layers.parameters():
            p.normal_(1.0, 0.3)
    block.load_state_dict(layers.state_dict())
    x = torch.randn(3, channels[0], 6, 8, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        ours, theirs = block(x), layers(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
        cotangent = torch.randn_like(ours)
        for a, b in zip(
            torch.autograd.grad(ours, (x, *block.parameters()), cotangent),
            torch.autograd.grad(theirs, (x, *layers.parameters()), cotangent),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert list(block.state_dict()) == list(layers.state_dict())
    for key, value in layers.state_dict().items():
        torch.testing.assert_close(block.state_dict()[key], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("transposed", [False, True])
def test_folded_batch_norm_follows_every_change(transposed):
    """Without gradients the norm is folded into the weight: after each change of either."""
    torch.manual_seed(2)
    channels = (10, 3) if transposed else (3, 10)
    kind = pf.nn.ConvTransposeBlock if transposed else pf.nn.ConvBlock
    block = kind(*channels, 4, 2, 1, norm="batch", act="silu", bias=True).double().eval()
    x = torch.randn(2, channels[0], 6, 6, dtype=torch.float64)
    other = plain(transposed, "batch", "silu", True, channels)
    with torch.no_grad():
        for t in (*other.parameters(), other[1].running_mean, other[1].running_var):
            t.uniform_(0.5, 1.5)

    def same():
        layers = plain(transposed, "batch", "silu", True, channels)
        layers.load_state_dict(block.state_dict())
        with torch.no_grad():
            y = block(x)
            torch.testing.assert_close(y, layers.eval()(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)  # with gradients
        return y

    seen = [same()]
    block.load_state_dict(other.state_dict())
    seen.append(same())
    for tensor in (block.conv.weight, block.conv.bias, block.norm.running_var, block.norm.weight):
        tensor.data.mul_(1.5)
        seen.append(same())
    block.train()(x)  # moves the statistics
    block.eval()
    seen.append(same())
    for a, b in pairwise(seen):
        assert not torch.allclose(a, b)


def test_hooks_of_the_layers_are_called():
    """Spectral norm of the old style, among others, is one."""
    block = pf.nn.ConvBlock(3, 8, 3, norm="batch")
    calls = []
    block.conv.register_forward_pre_hook(lambda *_: calls.append("conv"))
    block.norm.register_forward_hook(lambda *_: calls.append("norm"))
    block(torch.randn(2, 3, 5, 5))
    assert calls == ["conv", "norm"]


def test_a_norm_that_was_changed_is_torch_s_own():
    """A cumulative average is not what `norm_act` keeps."""
    block = pf.nn.ConvBlock(3, 8, 3, norm="batch", act="relu")
    other = copy.deepcopy(block)
    block.norm.momentum = other.norm.momentum = None
    for _ in range(3):
        x = torch.randn(2, 3, 5, 5)
        torch.testing.assert_close(block(x), other.norm(other.conv(x)).relu())
    torch.testing.assert_close(block.norm.running_var, other.norm.running_var)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_without_running_statistics(transposed, training):
    kind = pf.nn.ConvTransposeBlock if transposed else pf.nn.ConvBlock
    block = kind(3, 5, 4, 2, 1, norm="batch", act="relu").double()
    norm = nn.BatchNorm2d(5, track_running_stats=False).double()
    nn.init.normal_(norm.weight)
    block.add_module("1", norm)
    block.train(training)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), norm(block.conv(x)).relu(), rtol=1e-12, atol=1e-12)


def test_block_without_bias_or_norm():
    block = pf.nn.ConvBlock(2, 3, 3, bias=False)
    assert list(block.state_dict()) == ["0.weight"]
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(block.conv(x), 0.2))


def unfused():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def fused():
    return pf.nn.FusedSequential(
        pf.nn.ConvBlock(1, 4, 3),
        pf.nn.ConvBlock(4, 4, 3, norm="batch"),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def test_row_of_blocks_has_the_state_of_the_unfused_row():
    there, here = nn.ModuleDict({"main": unfused()}), nn.ModuleDict({"main": fused()})
    assert set(here.state_dict()) == set(there.state_dict())
    here.load_state_dict(there.state_dict())
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(here["main"](x), there["main"](x))
    with torch.no_grad():
        for p in here.parameters():
            p.add_(1.0)
    there.load_state_dict(here.state_dict())
    torch.testing.assert_close(here["main"](x), there["main"](x))


def test_row_of_blocks_reports_missing_and_unexpected_keys():
    state = unfused().state_dict()
    del state["3.running_mean"]
    state["7.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*running_mean.*Unexpected.*7\.weight"):
        fused().load_state_dict(state)


def test_copies_and_pickles_keep_the_keys():
    row = fused()
    for other in (copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        assert list(other.state_dict()) == list(row.state_dict())
        other.load_state_dict(unfused().state_dict())


def test_compiles_without_a_break():
    block = pf.nn.ConvTransposeBlock(2, 3, 4, 2, 1, act="relu")
    x = torch.randn(2, 2, 4, 4)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_autocast_gives_the_low_precision_type():
    block = pf.nn.ConvBlock(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert block.conv.bias.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"norm": "bach"}, "did you mean 'batch'"),
        ({"act": "rely"}, "did you mean 'relu'"),
        (
            {"norm": "group", "groups": 2},
            "groups must be a positive integer that divides 3 channels, got 2",
        ),
        ({"norm": "batch", "groups": 3}, "groups belongs to norm='group'"),
        ({"groups": 3}, "groups belongs to norm='group'"),
        ({"stride": 2, "output_padding": 2}, "output_padding must be less than stride 2, got 2"),
    ],
)
def test_bad_arguments_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        pf.nn.ConvTransposeBlock(2, 3, 4, **kwargs)


def test_bias_act_layer():
    layer = pf.nn.BiasAct(3, "silu", gain=2.0, clamp=1.0)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 4)
    expected = (2.0 * nn.functional.silu(x + layer.bias[None, :, None])).clamp(-1, 1)
    torch.testing.assert_close(layer(x), expected)
    assert list(layer.state_dict()) == ["bias"]
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        pf.nn.BiasAct(0)
