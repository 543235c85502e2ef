"""edge_conv beyond the contract: any size, kernel, stride and padding against float64 torch, which
plan serves what, layouts, and second order under a gradient penalty."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import pyfastgan as pf
from pyfastgan.ops import _edge_kernels
from pyfastgan.ops._registry import ops
from pyfastgan.ops.edge_conv import plan
from pyfastgan.testing import backends

from .edges import check, laid_out

BACKENDS = backends(ops()["edge_conv"])

CALLS = {
    "batch": st.integers(1, 3),
    "features": st.integers(1, 37),
    "channels": st.integers(1, 5),
    "size": st.tuples(st.integers(1, 24), st.integers(1, 40)),
    "kernel": st.tuples(st.integers(1, 7), st.integers(1, 7)),
    "stride": st.integers(1, 4),
    "padding": st.integers(0, 5),
    "layout": st.sampled_from(["contiguous", "channels last", "strided"]),
    "dtype": st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.parametrize("transposed", [False, True])
@settings(deadline=None, max_examples=120)
# More padding than kernel, and a row of the image that no kernel reaches.
@example(2, 9, 3, (5, 6), (4, 2), 2, 5, 1, "channels last", torch.float32, 0)
@example(2, 16, 1, (24, 40), (3, 3), 1, 1, 0, "contiguous", torch.bfloat16, 0)
@given(*(CALLS[k] for k in ("batch", "features", "channels", "size", "kernel", "stride", "padding")),
       st.integers(0, 3), *(CALLS[k] for k in ("layout", "dtype", "seed")))  # fmt: skip
def test_any_size_equals_torch_in_float64(
    transposed, batch, features, channels, size, kernel, stride, padding, extra, layout, dtype, seed
):
    weight_shape = (features, channels, *kernel)
    if not transposed:
        assume(all(s + 2 * padding >= k for s, k in zip(size, kernel, strict=True)))
        arguments = {"stride": stride, "padding": padding}
        check(False, (batch, channels, *size), weight_shape, arguments, layout, dtype, seed)
        return
    extra = min(extra, stride - 1)
    assume(all((s - 1) * stride - 2 * padding + k + extra > 0 for s, k in zip(size, kernel, strict=True)))  # fmt: skip
    arguments = {"stride": stride, "padding": padding, "output_padding": extra}
    check(True, (batch, features, *size), weight_shape, arguments, layout, dtype, seed)


@pytest.mark.parametrize(
    ("weight", "stride", "expected"),
    [
        ((64, 3, 4, 4), 2, "edge"),
        ((64, 3, 3, 3), 1, "edge"),
        ((64, 3, 7, 7), 1, "edge"),
        ((32, 1, 4, 4), 4, "edge"),
        ((64, 3, 3, 3), 2, "torch"),  # the stride does not divide the kernel
        ((64, 3, 6, 6), 3, "torch"),  # 27 outputs at a place
        ((64, 5, 4, 4), 2, "torch"),
        ((7, 3, 4, 4), 2, "torch"),
    ],
)
def test_what_serves_a_weight(weight, stride, expected):
    with pf.use_backend(BACKENDS[0]):
        assert plan(torch.empty(weight), stride, features_size=(8, 8)) == expected
        assert plan(torch.empty(weight, device="meta"), stride, features_size=(8, 8)) == "torch"


@pytest.mark.parametrize("last", [False, True])
def test_points_are_a_matrix_product(last):
    w = torch.randn(6, 9, 4, 3, dtype=torch.float64)
    w = laid_out(w, "channels last" if last else "contiguous").requires_grad_()
    x = torch.randn(5, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    assert plan(w, 2, features_size=(1, 1)) == "matrix"
    y, z = pf.ops.edge_conv_transpose(x, w, stride=2), F.conv_transpose2d(x, w, stride=2)
    torch.testing.assert_close(y, z)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    dy = torch.randn_like(z)
    for a, b in zip(
        torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(z, (x, w), dy), strict=True
    ):
        torch.testing.assert_close(a, b)
    for given_ in ({"padding": 1}, {"stride": 2, "output_padding": 1}):
        torch.testing.assert_close(
            pf.ops.edge_conv_transpose(x, w, **given_), F.conv_transpose2d(x, w, **given_)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_of_results(backend):
    x, w = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(16, 3, 4, 4)
    last = torch.channels_last
    with pf.use_backend(backend):
        for image, weight, given_, expected in (
            (x, w, None, False),
            (laid_out(x, "channels last"), w, None, True),
            (x, laid_out(w, "channels last"), None, True),
            (x, w, True, True),
            (laid_out(x, "channels last"), w, False, False),
        ):
            y = pf.ops.edge_conv(image, weight, stride=2, padding=1, channels_last=given_)
            assert y.is_contiguous(memory_format=last) == expected
        f = torch.randn(2, 16, 4, 4).contiguous(memory_format=last).requires_grad_()
        image = pf.ops.edge_conv_transpose(f, w, stride=2, padding=1)
        assert image.is_contiguous()
        (df,) = torch.autograd.grad(image.sum(), f)
        assert df.is_contiguous(memory_format=last)


def test_a_gradient_penalty_through_a_critic():
    """Second order in both weights, as WGAN-GP takes it, against plain torch in float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weights = [torch.randn(9, 3, 4, 4, dtype=torch.float64), torch.randn(1, 9, 4, 4).double()]

    def penalty(conv):
        point = x.clone().requires_grad_()
        leaves = [w.clone().requires_grad_() for w in weights]
        h = F.softplus(conv(point, leaves[0], stride=2, padding=1))
        (g,) = torch.autograd.grad(F.conv2d(h, leaves[1]).sum(), point, create_graph=True)
        return torch.autograd.grad(((g.flatten(1).norm(dim=1) - 1) ** 2).mean(), leaves)

    for a, b in zip(penalty(pf.ops.edge_conv), penalty(F.conv2d), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_weights_that_are_not_finite_do_not_reach_the_border():
    """Zeros around the image are left out, not multiplied."""
    x, w = torch.randn(1, 1, 6, 6), torch.randn(8, 1, 3, 3)
    w[0, 0, 0, 0] = torch.inf
    with pf.use_backend(BACKENDS[0]):
        y = pf.ops.edge_conv(x, w, padding=1)
    assert y[0, 0, 0].isfinite().all()
    assert y[0, 0, :, 0].isfinite().all()
    assert y[0, 0, 1:, 1:].isinf().all()
    assert y[0, 1:].isfinite().all()


def test_autocast_computes_in_the_low_precision():
    x, w = torch.randn(1, 3, 8, 8), torch.randn(16, 3, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = pf.ops.edge_conv(x, w, stride=2, padding=1)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("width", [12, 36])
def test_first_derivatives_behind_an_activation(width, layout, dtype):
    """Without a second order the activation's backward pass is taken inside the kernels."""
    g = torch.Generator().manual_seed(width)
    # So many rows that the weight gradient takes them in several parts.
    x = laid_out(torch.randn(3, 2, 30, width, generator=g).to(dtype), layout).requires_grad_()
    w = torch.randn(21, 2, 4, 4, generator=g).to(dtype).requires_grad_()
    b = torch.randn(21, generator=g).to(dtype).requires_grad_()
    with pf.use_backend(BACKENDS[0]):
        y = pf.ops.edge_conv(x, w, b, stride=2, padding=1, act="leaky_relu", slope=0.3)
        dy = laid_out(torch.randn(y.shape, generator=g).to(dtype), layout)
        ours = torch.autograd.grad(y, (x, w, b), dy)
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    z = F.conv2d(*wide, 2, 1)
    rough = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), F.leaky_relu(z, 0.3), rtol=rough, atol=64 * 2**-23)
    # The signs are those of the result that was kept.
    exact = torch.autograd.grad(z, wide, torch.where(y > 0, dy.double(), 0.3 * dy.double()))
    for a, e in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=rough, atol=256 * 2**-23)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_features_that_no_cache_holds(layout):
    """They are stored past the caches, by several threads."""
    g = torch.Generator().manual_seed(0)
    x = laid_out(torch.randn(49, 3, 64, 64, generator=g), layout)
    w, b = torch.randn(64, 3, 4, 4, generator=g), torch.randn(64, generator=g)
    with pf.use_backend(BACKENDS[0]):
        y = pf.ops.edge_conv(x, w, b, stride=2, padding=1, act="relu")
    torch.testing.assert_close(y, F.conv2d(x, w, b, 2, 1).relu(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("act", ["linear", "relu", "leaky_relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_pass_by_the_kernels_and_by_torch(dtype, layout, act, monkeypatch):
    """Either gives the same, in the same layout."""
    monkeypatch.setattr(_edge_kernels, "_MULTIPLIES_BFLOAT16", True)
    monkeypatch.setattr(_edge_kernels, "_WORTH", 1)
    monkeypatch.setattr(_edge_kernels, "_WORTH_LAST", 1)
    g = torch.Generator().manual_seed(0)
    last = layout == "channels last"
    form = torch.channels_last if last else torch.contiguous_format
    for channels, kernel in ((3, 4), (1, 6)):
        x = laid_out(torch.randn(2, channels, 12, 10, generator=g).to(dtype), layout)
        w = torch.randn(16, channels, kernel, kernel, generator=g).to(dtype)
        bias = None if act == "linear" else torch.randn(16, generator=g).to(dtype)
        exact = F.conv2d(x.double(), w.double(), None if bias is None else bias.double(), 2, 1)
        exact = {"linear": lambda t: t, "relu": F.relu}.get(act, lambda t: F.leaky_relu(t, 0.3))(
            exact
        )
        for backend in ("auto", BACKENDS[-1]):
            with pf.use_backend(backend):
                settings_ = {"stride": 2, "padding": 1, "act": act, "slope": 0.3}
                y = pf.ops.edge_conv(x, w, bias, **settings_, channels_last=last)
            rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=1e-2)
            # Without kernels torch's convolution serves, and decides on the layout.
            assert y.is_contiguous(memory_format=form) or "cpu" not in BACKENDS


@pytest.mark.skipif("cpu" not in BACKENDS, reason="without kernels there is nothing to choose")
@pytest.mark.parametrize(
    ("dtype", "batch", "channels", "last", "fast", "by_torch"),
    [
        (torch.bfloat16, 64, 3, False, True, True),
        (torch.bfloat16, 16, 3, False, True, False),  # too few products
        (torch.bfloat16, 16, 3, True, True, True),  # enough where nothing is written twice
        (torch.bfloat16, 8, 3, True, True, False),
        (torch.bfloat16, 64, 1, True, True, False),  # too few at a place
        (torch.bfloat16, 64, 3, True, False, False),  # a processor that widens them first
        (torch.float32, 64, 3, True, True, False),
    ],
)
def test_where_torch_serves_a_forward_pass(
    dtype, batch, channels, last, fast, by_torch, monkeypatch
):
    monkeypatch.setattr(_edge_kernels, "_MULTIPLIES_BFLOAT16", fast)
    x = torch.empty(batch, channels, 32, 32, dtype=dtype)
    w = torch.empty(64, channels, 4, 4, dtype=dtype)
    for backend in ("auto", "cpu"):
        with pf.use_backend(backend):
            served = _edge_kernels._torch_is_faster(x, w, 2, 1, last)
        assert served == (by_torch and backend == "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "inputs", "channels"), [(7, 9, 5), (1, 5, 8), (14, 3, 1), (2, 1030, 2)]
)
def test_points_of_any_number(batch, inputs, channels, dtype):
    """Tiles of points and panels of columns that are not whole, twice differentiable."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inputs, 1, 1, generator=g).to(dtype).requires_grad_()
    w = torch.randn(inputs, channels, 4, 4, generator=g).to(dtype).requires_grad_()
    dy = torch.randn(batch, channels, 4, 4, generator=g).to(dtype)

    def results(function, x, w):
        y = function(x, w)
        dx, dw = torch.autograd.grad(y, (x, w), dy.to(y.dtype), create_graph=True)
        return y, dx, dw, *torch.autograd.grad((dw**2).sum() + (dx**2).sum(), (x, w))

    exact = results(F.conv_transpose2d, x.double(), w.double())
    for backend in ("auto", BACKENDS[0]):
        with pf.use_backend(backend):
            ours = results(pf.ops.edge_conv_transpose, x, w)
        for a, b in zip(ours, exact, strict=True):
            scale = b.abs().max() * max(torch.finfo(dtype).eps, 2**-50)
            assert (a.double() - b).abs().max() <= 8 * scale


@pytest.mark.skipif("cpu" not in BACKENDS, reason="it is a kernel's")
def test_points_that_are_not_finite_stay_in_their_rows_and_columns():
    x, w = torch.randn(8, 20, 1, 1), torch.randn(20, 5, 4, 4)
    x[7, 3], w[5, 4, 3, 3] = torch.nan, torch.inf
    with pf.use_backend("cpu"):
        y = pf.ops.edge_conv_transpose(x, w)
    assert y[7].isnan().all()
    assert y[:7].flatten(1)[:, :-1].isfinite().all()
    assert not y[:, 4, 3, 3].isfinite().any()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [4, 5])
def test_results_of_one_place_are_a_matrix_product(last, size):
    """An image as large as the kernel, and one whose rest the stride leaves out."""
    layout = "channels last" if last else "contiguous"
    w = laid_out(torch.randn(9, 6, 4, 4, dtype=torch.float64), layout).requires_grad_()
    x = laid_out(torch.randn(5, 6, size, size, dtype=torch.float64), layout).requires_grad_()
    bias = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert plan(w, 2, features_size=(1, 1)) == "matrix"
    assert plan(w, 2, features_size=(1, 1), padding=1) == "torch"
    y = pf.ops.edge_conv(x, w, bias, stride=2, act="leaky_relu")
    z = F.leaky_relu(F.conv2d(x, w, bias, stride=2), 0.2)
    torch.testing.assert_close(y, z)
    dy = torch.randn_like(z)
    for a, b in zip(
        torch.autograd.grad(y, (x, w, bias), dy),
        torch.autograd.grad(z, (x, w, bias), dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
