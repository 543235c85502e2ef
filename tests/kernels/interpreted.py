"""Tests of the Triton kernels that run in Triton's interpreter, on CPU tensors.

test_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1.
"""

import math

import pytest
import torch
import triton
import triton.language as tl

from pyfastgan import testing, use_backend
from pyfastgan.kernels import (
    bias_act,
    conv_transpose_act,
    edge_conv,
    glow_step,
    mmd,
    nearest_code,
    norm_act,
    penalty,
    random,
    rows,
    upfirdn2d,
)
from pyfastgan.ops import _conv_transpose_fused as of_middle
from pyfastgan.ops import _glow_parts as of_glow
from pyfastgan.ops import _penalty as of_penalties
from pyfastgan.ops._glow_step import GlowParameters, glow_steps
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


@pytest.fixture
def small_row_tiles(monkeypatch):
    monkeypatch.setattr(rows, "TILE", 16)
    monkeypatch.setattr(rows, "FLOAT64_SHARE", 1)
    monkeypatch.setattr(rows, "PROGRAMS", 6)
    monkeypatch.setattr(rows, "WIDE_FROM", 100)  # which some of the tensors below are beyond


THREE = (T((3, 75)), T((3, 75)), T((3, 75)))
ROWS = {
    "reparameterize": ((T((3, 75)), T((3, 75))), {"seed": 3, "stream": 2**32 - 1, "sample_offset": 5}),
    "bernoulli_nll": ((T((3, 75), map=torch.sigmoid), T((3, 75), scale=9.0)), {}),
    "gaussian_nll": (THREE, {}),
    "affine_coupling": (THREE, {"scale": "softclamp", "inverse": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_samples_in_parts(small_row_tiles, name):
    testing.check_values(ops()[name], Sample("parts", *ROWS[name]), torch.float32)


def test_couplings_of_parts_of_a_tensor():
    """The halves of a network's output, whose samples lie apart, are read in place."""
    both, x = T((3, 8, 5)).make(torch.float32, "cpu"), T((3, 4, 5)).make(torch.float32, "cpu", 1)
    raw, shift = both.chunk(2, 1)
    op = ops()["affine_coupling"]
    y, logdet = op.function(x, raw, shift)
    torch.testing.assert_close(y, op.reference(x, raw, shift)[0])
    torch.testing.assert_close(logdet, raw.flatten(1).sum(1))


@pytest.mark.parametrize("scale", [1e-9, 0.3, 1.0, 3.0, 1e9])
def test_arctangents(scale):
    """Through the soft clamp, whose logarithm is its multiple: to some four roundings."""
    for dtype, error in ((torch.float32, 5e-7), (torch.float64, 2e-15)):
        raw = T((400, 1), scale=scale).make(dtype, "cpu")
        zeros = torch.zeros_like(raw)
        _, logdet = ops()["affine_coupling"].function(
            zeros, raw, zeros, scale="softclamp", clamp=1.0
        )
        exact = 0.636 * torch.atan(raw[:, 0].double())
        assert ((logdet - exact).abs() <= error * exact.abs() + 1e-300).all()


def test_normals_of_float64():
    x, op = torch.zeros((5, 50), dtype=torch.float64), ops()["reparameterize"]
    ours, exact = (f(x, x, 11)[0] for f in (op.function, op.reference))
    assert ((ours - exact).abs() <= 1e-14 * exact.abs()).all()


@pytest.fixture
def small_blocks(monkeypatch):
    block = (16, 16, 16)
    monkeypatch.setattr(nearest_code, "BLOCKS", {torch.float32: block, torch.float64: block})
    monkeypatch.setattr(nearest_code, "HALF_BLOCK", block)
    monkeypatch.setattr(nearest_code, "SUM_BLOCK", block)
    monkeypatch.setattr(nearest_code, "PIECE", 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_codes_in_blocks(small_blocks, dtype):
    sample = Sample("blocks", (T((70, 35)), T((50, 35))))
    testing.check_values(ops()["nearest_code"], sample, dtype)


def test_the_leftmost_of_equal_codes(small_blocks):
    """Within a block and across blocks; NaN is the nearest, a code at infinity never is."""
    book = torch.arange(40.0).reshape(40, 1) % 10
    x = torch.arange(10.0).flip(0)[:, None]
    index, distance = nearest_code.nearest_code(x, book)
    assert index.tolist() == list(range(9, -1, -1))
    assert not distance.any()
    book[3], book[25], book[38] = math.inf, math.nan, math.nan
    index, _ = nearest_code.nearest_code(x, book)
    assert index.tolist() == [25] * 10
    book[25] = book[38] = math.inf
    index, _ = nearest_code.nearest_code(torch.tensor([[3.0], [math.nan], [7.2]]), book)
    assert index.tolist() == [13, 0, 7]


def test_sums_of_codes(small_blocks):
    x = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
    index = torch.arange(100) ** 2 % 23
    counts, sums = nearest_code.code_sums(x, index, 30)
    assert torch.equal(counts, torch.bincount(index, minlength=30).float())
    expected = torch.zeros(30, 20, dtype=torch.float64).index_add_(0, index, x.double())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_pairs_in_pieces(monkeypatch, unbiased):
    """Several blocks along each axis, with ends that fill none, and several pieces."""
    block = (16, 16, 16, 16)
    monkeypatch.setattr(mmd, "BLOCKS", {torch.float32: block, torch.float64: block})
    monkeypatch.setattr(mmd, "PROGRAMS", 4)
    sample = Sample("pieces", (T((35, 19)), T((50, 19)), (2.0, 6.0, 9.0)), {"unbiased": unbiased})
    testing.check_values(ops()["mmd"], sample, torch.float32)


@pytest.mark.parametrize("offsets", ["32 bits", "64 bits"])
def test_filters_in_tiles(monkeypatch, offsets):
    """More phases than taps, rows and columns of several tiles, in both layouts."""
    monkeypatch.setattr(upfirdn2d, "TILE", 128)
    monkeypatch.setattr(upfirdn2d, "WIDE_FROM", 0 if offsets == "64 bits" else 2**31)
    taps = (0.1, -0.7, 0.4, 0.3, 0.9)
    for options in ({"up": 2, "down": 3, "padding": (-1, 3)}, {"up": 7, "padding": (3, 4)}):
        sample = Sample(
            "tiles", (T((2, 3, 5, 4), channels_last=offsets == "32 bits"), taps), options
        )
        testing.check_values(ops()["upfirdn2d"], sample, torch.float32)


EDGES = {
    # Whole kernels; one that is not square, with pixels that no feature meets; a bias and a ReLU.
    "edge_conv": (
        (T((2, 3, 6, 5)), T((9, 3, 3, 3), scale=0.3), T((9,))), {"padding": 1, "act": "relu"}),
    "edge_conv, channels last": (
        (T((2, 1, 7, 8), channels_last=True), T((8, 1, 4, 2), scale=0.3), T((8,))),
        {"stride": 2, "padding": 1, "act": "leaky_relu"}),
    "edge_conv_transpose": (
        (T((2, 9, 3, 4)), T((9, 2, 4, 4), scale=0.3)), {"stride": 2, "padding": 1, "output_padding": 1}),
    "edge_conv_transpose, channels last": (
        (T((1, 8, 2, 3), channels_last=True), T((8, 1, 2, 4), scale=0.3)), {"stride": 2}),
}  # fmt: skip


@pytest.mark.parametrize("call", EDGES)
def test_convolutions_at_the_edge(monkeypatch, call):
    """Several blocks and pieces of the weight's gradient; few elsewhere, which take milliseconds of any size."""
    monkeypatch.setattr(edge_conv, "FORWARD", (32, 16))
    monkeypatch.setattr(edge_conv, "ADJOINT", (32, 8))
    monkeypatch.setattr(edge_conv, "FLOAT64_SHARE", 1)
    monkeypatch.setattr(edge_conv, "WEIGHT", (16, 16, 16))
    monkeypatch.setattr(edge_conv, "PROGRAMS", 3)
    if call.endswith("last"):
        monkeypatch.setattr(edge_conv, "WIDE_FROM", 0)
    arguments, settings = EDGES[call]
    op = ops()[call.split(",")[0]]
    for dtype in (torch.float32, torch.bfloat16) if call == "edge_conv" else (torch.float32,):
        testing.check_values(op, Sample(call, arguments, settings), dtype)


def test_what_lies_outside_an_image_is_left_out():
    """An infinite weight over the padding is no NaN; a slope of 0 makes 0 of minus infinity."""
    image, weight = torch.ones((1, 1, 2, 2)), torch.ones((8, 1, 3, 3))
    weight[0, 0, 0, 0] = math.inf
    y = edge_conv.edge_conv(image, weight, 1, 1, False)
    assert y[0, 0].tolist() == [[4, 4], [4, math.inf]]
    y = edge_conv.edge_conv(image, -weight, 1, 1, False, None, 0.0)
    assert not y.any()
    back = edge_conv.edge_conv_transpose(torch.ones((1, 8, 2, 2)), weight, 1, 1, 2, 2)
    assert back.flatten().tolist() == [math.inf, 32, 32, 32]


def drawn(*shape, seed=0, last=False):
    return T(shape, channels_last=last).make(torch.float64, "cpu", seed)


PENALISED = {
    "parts": drawn(3, 75),
    "several samples": drawn(9, 5),
    "channels last": drawn(3, 4, 5, 2, last=True),
    "numbers": drawn(7),
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in PENALISED),
        ("channels last", torch.bfloat16),
        ("parts", torch.float16),
        ("parts", torch.float64),
    ],
)
def test_penalties_of_gradients(small_row_tiles, kind, dtype):
    """The penalty, its derivative and the norms, of a sample of zeros and of one with a norm below 1 too."""
    g = (0.3 * PENALISED[kind]).to(dtype)
    g[1], g[2] = 0, g[2] * 0.1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    close = {"rtol": 3e-6, "atol": 1e-7}
    for shape in penalty.SHAPES:
        ours = penalty.penalty_gradient(g, shape, 10.0)
        exact = of_penalties._gradient_reference(g.double(), shape, 10.0)
        assert ours[0].dtype == ours[2].dtype == wide
        assert ours[1].dtype == dtype
        assert ours[1].stride() == g.stride()
        torch.testing.assert_close(ours[0].double(), exact[0], **close)
        torch.testing.assert_close(ours[2].double(), exact[2], **close)
        rounding = 0 if wide == dtype else torch.finfo(dtype).eps / 2
        torch.testing.assert_close(ours[1].double(), exact[1], rtol=3e-6 + rounding, atol=1e-7)


def test_penalties_are_differentiated_twice(small_row_tiles):
    """As they are in a critic's loss, and once more; torch's operations give the same."""
    g, y = drawn(3, 2, 5, 2, last=True), drawn(3, 2, 5, 2, seed=1)

    def total(g, y):
        s = of_penalties.row_products(g * y, None)
        return of_penalties.SHAPES["two-sided"].value(s).mean() + (
            of_penalties.scale_rows(y, of_penalties.row_products(g, y)).square().sum()
        )

    def derivatives(g, y):
        g, y = g.clone().requires_grad_(), y.clone().requires_grad_()
        first = torch.autograd.grad(total(g, y), (g, y), create_graph=True)
        return *first, *torch.autograd.grad(sum(t.pow(3).sum() for t in first), (g, y))

    ours = derivatives(g, y)
    with use_backend("reference"):
        expected = derivatives(g, y)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("seed", [7, torch.arange(9) * 5 - 11], ids=["one seed", "a seed a sample"])
def test_points_between_samples(small_row_tiles, dtype, seed):
    """The very shares of `random_uniform`, of each layout."""
    for last in (False, True):
        fake, real = (drawn(9, 3, 2, 3, seed=k, last=last).to(dtype) for k in (1, 2))
        place = {"stream": 2**32 - 1, "sample_offset": 3}
        ours = of_penalties.points_between(fake, real, seed, **place)
        with use_backend("reference"):
            expected = of_penalties.points_between(fake, real, seed, **place)
        assert ours.stride() == real.stride()
        eps = torch.finfo(dtype).eps
        assert (
            (ours.double() - expected.double()).abs() <= eps * expected.double().abs().clamp(min=1)
        ).all()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_shares_are_those_of_random_uniform(dtype):
    """Between 0 and 1 a point is its share; small ones are kept, and none is rounded up."""
    zeros, place = torch.zeros((4096, 1), dtype=dtype), {"sample_offset": 44_000}
    shares = of_penalties.points_between(zeros, zeros + 1, 5, **place)
    with use_backend("reference"):
        expected = ops()["random_uniform"].function((4096, 1), 5, dtype=dtype, **place)
    assert (expected < 2.0**-16).any()
    below = expected < 0.5
    assert torch.equal(shares[below], expected[below])
    assert ((shares - expected).abs() <= torch.finfo(dtype).eps).all()


@pytest.fixture
def small_glow_tiles(small_row_tiles, monkeypatch):
    """Several blocks of a sample's pixels with an odd end, several of them a program, the last one with fewer."""
    monkeypatch.setattr(glow_step, "PIXELS", {})
    monkeypatch.setattr(glow_step, "USUAL_PIXELS", 16)
    monkeypatch.setattr(glow_step, "PROGRAMS", 3)
    monkeypatch.setattr(rows, "TILE", 64)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_parts_of_a_glow_step(small_glow_tiles, dtype):
    """Against torch's operations in float64; 12 channels in blocks of 16, 49 pixels in blocks of 16."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, out, dy = (drawn(2, 12, 7, 7, seed=k).to(dtype) for k in range(3))
    z2, dz1, dz2 = (drawn(2, 6, 7, 7, seed=k).to(dtype) for k in range(3, 6))
    matrix, inverse, offset = drawn(12, 12, seed=6), drawn(12, 12, seed=7), drawn(12, seed=8)
    dlogdet = drawn(2, seed=9).to(wide)
    of_map = (matrix.to(wide), inverse.to(wide), offset.to(wide))
    calls = [("mix", (x, of_map[0], of_map[2])), ("unmix", (x, z2, dy, None, dz2, *of_map)),
             ("unmix", (x, z2, dy, dz1, dz2, *of_map))]  # fmt: skip
    for scale, first in (("sigmoid", True), ("exp", False)):
        calls.append(("couple", (x, out, scale, 1.5, first)))
        calls.append(("uncouple", (x, out, dy, dlogdet, scale, 1.5, first)))
    for name, arguments in calls:
        kernel = getattr(of_glow, f"_{name}")
        exact = [t.double() if isinstance(t, torch.Tensor) else t for t in arguments]
        with use_backend("reference"):
            expected = testing.tensors_of(kernel.implementation("reference")(*exact))
        for ours, e in zip(
            testing.tensors_of(kernel.implementation("triton")(*arguments)), expected, strict=True
        ):
            error = (ours.double() - e).abs().max() / e.abs().max()
            # A half type is rounded once; sums of a hundred products have a few roundings more.
            assert error <= (8 if ours.dtype == wide else 1) * torch.finfo(ours.dtype).eps, (
                name,
                error,
            )


def test_glow_steps_with_recomputation(small_glow_tiles):
    """A row of steps and all its gradients; torch's operations give the same."""
    torch.manual_seed(0)
    x = drawn(2, 4, 5, 5)
    networks = [torch.nn.Conv2d(2, 4, 3, padding=1).double() for _ in range(2)]
    leaves = [[0.3 * drawn(4, seed=k), 0.2 * drawn(4, seed=k + 1), torch.eye(4).double() + 0.2 * drawn(4, 4, seed=k)]
              for k in range(2)]  # fmt: skip

    def run():
        given = [x.clone().requires_grad_()]
        steps = []
        for own, network in zip(leaves, networks, strict=True):
            bias, log_scale, weight = (t.clone().requires_grad_() for t in own)
            given += [bias, log_scale, weight, *network.parameters()]
            steps.append(
                GlowParameters(bias, log_scale, weight, torch.linalg.slogdet(weight)[1], network)
            )
        y, logdet = glow_steps(given[0], steps)
        return [
            y,
            logdet,
            *torch.autograd.grad(
                (y * drawn(2, 4, 5, 5, seed=5)).sum() + logdet.square().sum(), given
            ),
        ]

    ours = run()
    with use_backend("reference"):
        expected = run()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


MIDDLE = {
    # In blocks: pixels of several images, channels of input and result; odd sizes, and a pixel more on two sides.
    "k4 s2 p1": ((3, 21, 3, 4), (21, 18, 4, 4), {"stride": 2, "padding": 1, "act": "tanh"}),
    "k3 s2 p1, channels last": (
        (2, 5, 3, 4), (5, 17, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "act": "leaky_relu"}),
    "k5 s3, k2": ((2, 6, 2, 3), (6, 5, 5, 2), {"stride": 3, "act": "linear"}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "dtype"),
    [*((call, torch.float32) for call in MIDDLE), ("k4 s2 p1", torch.bfloat16), ("k4 s2 p1", torch.float16),
     ("k4 s2 p1", torch.float64)],
)  # fmt: skip
def test_convolutions_of_the_middle(monkeypatch, call, dtype):
    """Values, the moments of what is stored, and where a norm and gradients are wanted the whole op."""
    monkeypatch.setattr(conv_transpose_act, "BLOCK", (16, 16, 16))
    monkeypatch.setattr(conv_transpose_act, "FLOAT64_SHARE", 1)
    shape, kernel, settings = MIDDLE[call]
    last = call.endswith("last")
    if last:
        monkeypatch.setattr(conv_transpose_act, "WIDE_FROM", 0)
    x, w, b = drawn(*shape, last=last), drawn(*kernel, seed=1) * 0.2, drawn(kernel[1], seed=2) + 3
    x, w, b = (t.to(dtype) for t in (x, w, b))
    stride, padding, extra = (
        settings.get(k, d) for k, d in (("stride", 1), ("padding", 0), ("output_padding", 0))
    )
    arguments = (stride, padding, extra, settings["act"], 0.2, True)
    y, mean, var = conv_transpose_act.conv_transpose_act(x, w, b, *arguments)
    exact = of_middle._fused_reference(x.double(), w.double(), b.double(), *arguments)[0]
    assert y.stride() == exact.stride()
    # A half type is rounded once; else there are the roundings of a sum of 84 products, up to 6 in magnitude.
    most = torch.finfo(dtype).eps * (1 if dtype.itemsize == 2 else 16)
    assert (y.double() - exact).abs().max() <= most * exact.abs().max()
    of_y = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    close = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(mean.double(), of_y[1], rtol=close, atol=close)
    torch.testing.assert_close(var.double(), of_y[0], rtol=close, atol=close)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_layers_of_the_middle(norm):
    """All derivatives of both orders, and the running statistics, of one kernel and of torch's operations."""
    x, w, b = drawn(2, 5, 3, 2), drawn(5, 6, 4, 4, seed=1) * 0.3, drawn(6, seed=2)
    of_norm = [] if norm is None else [1 + 0.2 * drawn(6, seed=3), drawn(6, seed=4)]

    def run():
        given = [t.clone().requires_grad_() for t in (x, w, b, *of_norm)]
        running = (
            {}
            if norm is None
            else {"running_mean": drawn(6, seed=5), "running_var": 1 + drawn(6, seed=6).square()}
        )
        named = dict(zip(("norm_weight", "norm_bias"), given[3:], strict=False))
        settings = {"stride": 2, "padding": 1, "norm": norm, "act": "silu", **named, **running}
        y = ops()["conv_transpose_act"].function(*given[:3], **settings)
        with torch.no_grad():
            plain = ops()["conv_transpose_act"].function(*given[:3], **settings)
        first = torch.autograd.grad(y.pow(3).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), given)
        return [y, plain, *first, *second, *running.values()]

    ours = run()
    with use_backend("reference"):
        expected = run()
    for k, (a, e) in enumerate(zip(ours, expected, strict=True)):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-8, msg=str(k))
