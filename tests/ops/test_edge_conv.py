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


def laid_out(x, layout):
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    return torch.stack((x, x), -1)[..., 0] if layout == "strided" else x


def check(transposed, shape, weight_shape, arguments, layout, dtype, seed, roundings=4):
    """Value and gradients against torch in float64, relative to the sums of magnitudes."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g).to(dtype)
    w = torch.randn(weight_shape, generator=g).to(dtype)
    function, torchs = (
        (pf.ops.edge_conv_transpose, F.conv_transpose2d)
        if transposed
        else (pf.ops.edge_conv, F.conv2d)
    )

    def results(call, x, w, dy):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = call(x, w, **arguments)
        return y, *torch.autograd.grad(y, (x, w), dy.to(y.dtype))

    dy = torch.randn(torchs(x.double(), w.double(), **arguments).shape, generator=g).to(dtype)
    ours = results(function, laid_out(x, layout), laid_out(w, layout), laid_out(dy, layout))
    exact = results(torchs, x.double(), w.double(), dy.double())
    sizes = results(torchs, x.double().abs(), w.double().abs(), dy.double().abs())
    for a, b, size in zip(ours, exact, sizes, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        # A rounding of the result, and one of each of the sums that make it.
        limit = (
            torch.finfo(dtype).eps * b.abs()
            + roundings * max(2**-52, min(torch.finfo(dtype).eps, 2**-23)) * size
        )
        assert ((a.double() - b).abs() <= limit + 1e-30).all()


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


TILES = {
    # Channels, features, rows and columns of the image, padding: 1024 places and more are served in tiles.
    "an image": (3, 64, (64, 64), 1),
    "no padding": (3, 73, (66, 66), 0),
    "several tiles": (4, 70, (65, 72), 1),  # and a row of pixels that no kernel reaches
    "wide padding": (3, 64, (62, 62), 2),
    "odd": (3, 64, (66, 66), 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
@pytest.mark.parametrize("case", TILES)
def test_tiles_of_four_by_four_kernels_equal_torch_in_float64(case, layout, dtype):
    """Forward and weight gradient in 9/16 of the products, also behind an activation."""
    channels, features, size, padding = TILES[case]
    shape, weight = (3, channels, *size), (features, channels, 4, 4)
    arguments = {"stride": 2, "padding": padding}
    with pf.use_backend(BACKENDS[0]):
        # Sums and differences of the pixels and taps of a tile are rounded like the largest of them.
        check(False, shape, weight, arguments, layout, dtype, 0, roundings=6)
        outputs = [_edge_kernels.size_of(s, 4, 2, padding) for s in size]
        # The transposed convolution's data gradient is the forward kernel.
        check(True, (3, features, *outputs), weight, arguments, layout, dtype, 1, roundings=6)
        g = torch.Generator().manual_seed(2)
        x, w = torch.randn(shape, generator=g).to(dtype), torch.randn(weight, generator=g).to(dtype)
        w, b = (w / 4).requires_grad_(), torch.randn(features).to(dtype).requires_grad_()
        y = pf.ops.edge_conv(laid_out(x, layout), w, b, act="leaky_relu", slope=0.3, **arguments)
        dy = torch.randn(y.shape, generator=g).to(dtype)
        ours = torch.autograd.grad(y, (w, b), laid_out(dy, layout))
    wide = [t.detach().double().requires_grad_() for t in (w, b)]
    z = F.conv2d(x.double(), *wide, 2, padding)
    rough = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), F.leaky_relu(z, 0.3), rtol=rough, atol=64 * 2**-23)
    exact = torch.autograd.grad(z, wide, torch.where(y > 0, dy.double(), 0.3 * dy.double()))
    for a, e in zip(ours, exact, strict=True):
        # Sums over 3000 places, in float32 over a sample.
        torch.testing.assert_close(a.double(), e, rtol=rough, atol=4096 * 2**-23)


def test_error_of_tiles_is_that_of_torch():
    """In the mean, for normal numbers: at most twice is the rule of the house."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 3, 64, 64, generator=g), torch.randn(64, 3, 4, 4, generator=g)
    dy = torch.randn(4, 64, 32, 32, generator=g)

    def results(call, x, w, dy):
        w = w.detach().requires_grad_()
        y = call(x, w, stride=2, padding=1)
        return y, *torch.autograd.grad(y, w, dy)

    exact = results(F.conv2d, x.double(), w.double(), dy.double())
    torchs = results(F.conv2d, x, w, dy)
    with pf.use_backend(BACKENDS[0]):
        ours = results(pf.ops.edge_conv, x, w, dy)
    for a, b, e in zip(ours, torchs, exact, strict=True):
        error, of_torch = ((t.double() - e).square().mean().sqrt() for t in (a, b))
        assert error <= 2 * of_torch


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e30])
def test_numbers_that_tiles_cannot_hold_reach_what_they_reach_by_plain_products(value, layout):
    """No infinity becomes NaN, no large number infinite, and no place but its own is touched."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 3, 64, 64, generator=g), 0.1 * torch.randn(64, 3, 4, 4, generator=g)
    dy = 0.1 * torch.randn(4, 64, 32, 32, generator=g)
    plain = F.conv2d(x.double(), w.double(), None, 2, 1)
    x[1, 2, 6, 9] = value

    def results(call, x, dy):
        leaf = w.to(x.dtype).detach().requires_grad_()
        y = call(laid_out(x, layout), leaf, stride=2, padding=1)
        return y.detach(), torch.autograd.grad(y, leaf, laid_out(dy, layout))[0]

    exact = results(F.conv2d, x.double(), dy.double())
    with pf.use_backend(BACKENDS[0]):
        ours = results(pf.ops.edge_conv, x, dy)
        dy[2, 3, 4, 4] = value  # an image that is moderate, and a cotangent that is not
        x[1, 2, 6, 9] = 0.0
        cotangent = results(pf.ops.edge_conv, x, dy)[1]
    for a, e in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, e.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
    want = results(F.conv2d, x.double(), dy.double())[1]
    torch.testing.assert_close(cotangent, want.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
    others = [0, 2, 3]
    torch.testing.assert_close(ours[0][others].double(), plain[others], rtol=1e-4, atol=1e-5)


def test_weights_whose_sums_are_infinite_are_taken_as_they_are():
    g = torch.Generator().manual_seed(0)
    x, w = 1e-6 * torch.rand(2, 3, 64, 64, generator=g), torch.randn(64, 3, 4, 4, generator=g)
    w[5, 1, 2, 2] = w[5, 1, 0, 2] = 3e38
    with pf.use_backend(BACKENDS[0]):
        y = pf.ops.edge_conv(x, w, stride=2, padding=1)
    exact = F.conv2d(x.double(), w.double(), None, 2, 1)
    torch.testing.assert_close(y, exact.float(), rtol=1e-5, atol=1e-10)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="without kernels there are no threads of ours")
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_tiles_have_the_same_bits_on_any_number_of_threads(layout):
    g = torch.Generator().manual_seed(0)
    x = laid_out(torch.randn(19, 3, 64, 64, generator=g), layout)
    w = torch.randn(64, 3, 4, 4, generator=g)
    dy = laid_out(torch.randn(19, 64, 32, 32, generator=g), layout)
    threads, found = torch.get_num_threads(), []
    try:
        for some in (1, 2, 3):
            torch.set_num_threads(some)
            y = _edge_kernels._conv_cpu(x, w, 2, 1, layout != "contiguous")
            found.append((y, *_edge_kernels._weight_cpu(x, dy, 2, 1, 4, 4, None, 1.0, True)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


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
