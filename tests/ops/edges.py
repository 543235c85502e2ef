"""What the tests of edge_conv share: layouts, and value and gradients against torch in float64."""

import torch
import torch.nn.functional as F

import pyfastgan as pf


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
