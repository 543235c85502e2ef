"""Triton's random numbers, activations and norms in its interpreter, on CPU tensors.

test_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1.
"""

import math

import pytest
import torch
import triton
import triton.language as tl

from pyfastgan import testing
from pyfastgan.kernels import bias_act, norm_act, random
from pyfastgan.ops._registry import Sample, T, ops


@triton.jit
def words_kernel(out, seed, block, sample, stream):
    for word, lane in zip(
        random.philox_words(tl.load(seed), tl.load(block), sample, stream), tl.static_range(4)
    ):
        tl.store(out + lane, word.to(tl.int64))


@triton.jit
def normals_kernel(out, w0, w1, N: tl.constexpr):
    lane = tl.arange(0, N)
    a, b = random.normals_from_words(
        tl.load(w0 + lane).to(tl.uint32), tl.load(w1 + lane).to(tl.uint32)
    )
    tl.store(out + lane, a)
    tl.store(out + N + lane, b)


def signed(low, high):
    """Two 32-bit words as an int64 tensor."""
    value = low | high << 32
    return torch.tensor(value - (value >> 63 << 64))


def test_known_answers(known_answers):
    for (low, high, sample, stream), key, words in known_answers:
        out = torch.zeros(4, dtype=torch.int64)
        words_kernel[(1,)](out, signed(*key), signed(low, high), sample, stream)
        assert tuple(out.tolist()) == words


def random_call(name, sample):
    args, kwargs = sample.make(torch.float32)
    seed = kwargs.pop("seed")
    if not isinstance(seed, torch.Tensor):
        seed = signed(seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    return getattr(random, name)(
        seed, *args, kwargs.get("stream", 0), kwargs.get("sample_offset", 0)
    )


@pytest.mark.parametrize("sample", ops()["random_words"].samples, ids=lambda s: s.label)
@pytest.mark.parametrize("name", ["random_words", "random_uniform", "random_normal"])
def test_the_numbers_are_those_of_the_ops(name, sample, monkeypatch):
    monkeypatch.setattr(random, "BLOCKS", 4096)  # a program takes milliseconds, whatever its size
    op = ops()[name]
    ours = random_call(name, sample)
    args, kwargs = next(s for s in op.samples if s.label == sample.label).make(torch.float32)
    if name == "random_normal":
        expected = op.reference(*args, **kwargs | {"dtype": torch.float64})
        assert ours.dtype == torch.float32
        error = (ours - expected).abs() / expected.abs().clamp(min=1)
        assert (error <= 4 * torch.finfo(torch.float32).eps).all()
    else:
        assert torch.equal(ours, op.reference(*args, **kwargs))


def test_normals_of_extreme_words():
    """The ends of the range, where the logarithm changes its formula, and the borders of the quarters of a turn."""
    edges = [0, 1, 255, 256, 2**31, 0xB504F333, 0xB504F334, 2**32 - 256, 2**32 - 2, 2**32 - 1]
    turns = [k * 2**29 + d for k in range(1, 8) for d in (-1, 0)] + [0, 2**32 - 1]
    w0, w1 = torch.cartesian_prod(torch.tensor(edges), torch.tensor(turns)).T
    padding = torch.full((256 - len(w0),), 2**31)
    w0, w1 = torch.cat((w0, padding)), torch.cat((w1, padding))
    out = torch.empty(2, 256)
    normals_kernel[(1,)](out, w0, w1, 256)
    radius = torch.sqrt(-2 * torch.log((w0.double() + 0.5) * 2.0**-32))
    turn = (w1.double() + 0.5) * (2 * math.pi * 2.0**-32)
    exact = torch.stack((radius * torch.cos(turn), radius * torch.sin(turn)))
    error = (out - exact).abs()
    assert (error <= 4 * torch.finfo(torch.float32).eps * exact.abs().clamp(min=1)).all()
    # Small sines and cosines, and radii near 0, keep their precision too.
    assert (error <= 1e-6 * exact.abs()).all()


# Layouts by the way they are tiled: rows of one channel each, short and long, and columns with their own channels. All
# have ends that fill no tile.
SHAPES = {
    "short rows": T((5, 3, 7)),
    "long rows": T((3, 2, 7, 19)),
    "columns": T((23, 5, 3)),
    "channels last": T((6, 21, 3, 2), channels_last=True),
    "points": T((13, 37)),
}


@pytest.fixture(params=["several steps", "64-bit offsets"])
def small_tiles(request, monkeypatch):
    """Tiles of 64 elements, so that small tensors have many, and programs that take several of them."""
    monkeypatch.setattr(bias_act, "TILES", {"forward": 64, "derivative": 64})
    monkeypatch.setattr(bias_act, "FLOAT64_SHARE", 1)
    monkeypatch.setattr(bias_act, "TILE_ROWS", 4)
    monkeypatch.setattr(bias_act, "SUM_TILE", (16, 4))
    monkeypatch.setattr(bias_act, "LONG_ROW", 6)
    monkeypatch.setattr(bias_act, "PROGRAMS", 6)
    if request.param == "64-bit offsets":
        monkeypatch.setattr(bias_act, "WIDE_FROM", 0)


@pytest.mark.parametrize("act", ["leaky_relu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tiling(small_tiles, shape, act):
    x, settings = SHAPES[shape], {"slope": 0.3, "gain": -1.25, "clamp": 1.1}
    sample = Sample(shape, (x, T((x.shape[1],)), act), settings)
    testing.check_values(ops()["bias_act"], sample, torch.float32)


MASKED = {
    "rows": T((5, 3, 4, 4)),
    "columns": T((9, 5, 8)),
    "channels last": T((2, 24, 3, 2), channels_last=True),
    "no channels": T((105,)),
    "less than a byte": T((5,)),
}


@pytest.mark.parametrize("shape", MASKED)
def test_masks(small_tiles, monkeypatch, shape):
    """The bits of x + bias > 0, and a backward pass that has them alone, as the reference has them."""
    if shape == "columns":
        monkeypatch.setattr(bias_act, "LONG_ROW", 100)
    forward, backward, _ = ops()["bias_act"].kernels
    x, dy = (MASKED[shape].make(torch.float32, "cpu", seed) for seed in (1, 2))
    bias = T((x.size(1),)).make(torch.float32, "cpu") if x.dim() > 1 else None
    settings = ("leaky_relu", 0.3, -1.25, None)
    y, mask = bias_act.bias_act(x, bias, *settings, True)
    expected_y, expected_mask = forward.implementation("reference")(x, bias, *settings, True)
    torch.testing.assert_close(y, expected_y)
    assert mask.shape == expected_mask.shape
    whole = (x.numel() + 7) // 8
    assert torch.equal(mask[:whole], expected_mask[:whole])
    arguments = (dy, bias, mask, None, *settings, MASKED[shape].channels_last, bias is not None)
    for ours, expected in zip(
        bias_act.bias_act_backward(*arguments),
        backward.implementation("reference")(*arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)
        assert ours.stride() == expected.stride()


@pytest.mark.parametrize("act", ["tanh", "sigmoid", "silu", "gelu", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_numbers_through_each_formula(act, dtype):
    """Up to where torch's softplus leaves its own formula (20), and around zero."""
    for scale in (4.0, 0.1):
        testing.check_values(
            ops()["bias_act"], Sample(act, (T((5000,), scale=scale), None, act)), dtype
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
def test_the_derivative_at_the_kink(act, masked):
    x, settings = torch.tensor([-1.0, -0.0, 0.0, 1.0]), (act, 0.25, 1.0, None)
    y, mask = bias_act.bias_act(x, None, *settings, masked)
    kept = mask if masked else y
    arguments = (torch.ones(4), None, kept, None, *settings, False, False)
    dx, _ = bias_act.bias_act_backward(*arguments)
    below = 0 if act == "relu" else 0.25
    assert dx.tolist() == [below, below, below, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_to_nearest_even(dtype):
    """All numbers from 1 to 2 times 1.5: many products lie half way between two numbers of the type."""
    x = torch.arange(1, 2, torch.finfo(dtype).eps, dtype=torch.float64)
    y = ops()["bias_act"].function(x.to(dtype), None, "linear", gain=1.5)
    assert torch.equal(y, (1.5 * x).to(dtype))


def test_float64_keeps_its_precision_near_the_limits():
    """tanh near 0, softplus far below 0 where it nears 0, and both far out, relative to the value."""
    function, small = ops()["bias_act"].function, torch.logspace(-12, 0, 200, dtype=torch.float64)
    torch.testing.assert_close(function(small, None, "tanh"), small.tanh(), rtol=1e-14, atol=0)
    low = torch.linspace(-700, 0, 200, dtype=torch.float64)
    softplus = torch.log1p(torch.exp(low))
    torch.testing.assert_close(function(low, None, "softplus"), softplus, rtol=1e-14, atol=0)
    far = torch.tensor([-1000.0, 1000.0], dtype=torch.float64)
    assert function(far, None, "tanh").tolist() == [-1, 1]
    assert function(far, None, "softplus").tolist() == [0, 1000]


@pytest.fixture(params=["several steps", "64-bit offsets"])
def small_norm_tiles(request, monkeypatch):
    """Tiles of 64 elements, of which programs take several, and sums in more parts than are added at once."""
    monkeypatch.setattr(norm_act, "TILES", (64, 64, 64))
    monkeypatch.setattr(norm_act, "FLOAT64_SHARE", 1)
    monkeypatch.setattr(norm_act, "TILE_ROWS", 4)
    monkeypatch.setattr(norm_act, "SUM_TILE", (4, 2))
    monkeypatch.setattr(norm_act, "LONG_ROW", 40)
    monkeypatch.setattr(norm_act, "PROGRAMS", 6)
    if request.param == "64-bit offsets":
        monkeypatch.setattr(norm_act, "WIDE_FROM", 0)


# By the way that the sums and the results are tiled. All have ends that fill no tile.
NORMED = {
    "long rows, batch": ((3, 3, 7, 19), "batch", "gelu", False, None),
    "long rows, group": ((2, 4, 7, 19), "group", "leaky_relu", False, 2),
    "groups of short rows": ((5, 6, 7, 3), "group", "gelu", False, 2),
    "columns of channels and space": ((23, 5, 3), "batch", "leaky_relu", False, None),
    "columns of channels": ((6, 21, 3, 2), "batch", "silu", True, None),
    "groups down columns": ((3, 20, 3, 7), "group", "tanh", True, 4),
    "points": ((13, 37), "layer", "gelu", False, None),
}


@pytest.mark.parametrize("geometry", NORMED)
def test_every_tiling_of_norms(small_norm_tiles, geometry):
    shape, norm, act, last, groups = NORMED[geometry]
    arguments = (T(shape, channels_last=last), T((shape[1],)), T((shape[1],)))
    settings = {"norm": norm, "groups": groups, "act": act, "slope": 0.3}
    sample = Sample(geometry, arguments, settings)
    testing.check_values(ops()["norm_act"], sample, torch.float32)


@pytest.mark.parametrize("last", [False, True])
def test_the_variance_beside_a_large_mean(small_norm_tiles, last):
    """A deviation of 1/4 beside a mean of 2000: squares about zero would leave nothing of it."""
    x = 2000 + 0.25 * T((4, 3, 5, 11), channels_last=last).make(torch.float32, "cpu")
    _, mean, var = norm_act.norm_act(x, None, None, "batch", 3, 0.0, "linear", 0.0)
    exact = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=2e-7, atol=0)
    # A piece's mean is kept in float32: 1.2e-4 of 2000, times its distance from the mean of all. Here pieces are so
    # small that this is 0.1; squares about zero would be off by more than the variance.
    torch.testing.assert_close(var.double(), exact, rtol=1e-4, atol=0)
