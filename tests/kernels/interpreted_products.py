"""The Triton kernels of products - codes, pairs, filters, convolutions - in Triton's interpreter, on CPU tensors.

test_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1.
"""

import math

import pytest
import torch
from drawn import drawn

from pyfastgan import testing, use_backend
from pyfastgan.kernels import conv_transpose_act, edge_conv, mmd, nearest_code, upfirdn2d
from pyfastgan.ops import _conv_transpose_fused as of_middle
from pyfastgan.ops._registry import Sample, T, ops


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
