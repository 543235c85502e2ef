"""The tiles by which `edge_conv` serves 4 x 4 kernels of stride 2 with 9/16 of the products."""

import pytest
import torch
import torch.nn.functional as F

import pyfastgan as pf
from pyfastgan.ops import _edge_kernels
from pyfastgan.ops._registry import ops
from pyfastgan.testing import backends

from .edges import check, laid_out

BACKENDS = backends(ops()["edge_conv"])


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
