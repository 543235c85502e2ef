"""The modulated convolution against a convolution a sample with weights written out."""

import pytest
import torch
from torch.nn import functional as F

import pyfastgan as pf
from pyfastgan.nn import ModulatedConv2d


def explicit(layer, x, style):
    """Each sample with its own weights, as equations 1 to 3 of Karras et al. 2020."""
    scales = style @ layer.style.weight.T + layer.style.bias
    made = []
    for image, s in zip(x, scales, strict=True):
        weight = layer.weight * layer.scale * s[None, :, None, None]
        if layer.demodulate:
            weight = weight / torch.sqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        if layer.up == 1:
            made.append(F.conv2d(image[None], weight, padding=layer.weight.shape[-1] // 2))
            continue
        size = layer.weight.shape[-1]
        wide = F.conv_transpose2d(image[None], weight.transpose(0, 1), stride=2)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 4
        square = torch.outer(taps, taps)[None, None].expand(len(weight), 1, 4, 4)
        before, after = (5 - size) - (5 - size) // 2, (5 - size) // 2
        wide = F.pad(wide, (before, after, before, after))
        made.append(F.conv2d(wide, square, groups=len(weight)))
    return torch.cat(made)


# Plain, doubling, and a 1 x 1 convolution to an image, which is not demodulated.
CASES = [(3, 1, True), (3, 2, True), (1, 1, False), (1, 2, True)]


@pytest.mark.parametrize(("size", "up", "demodulate"), CASES)
def test_each_sample_has_weights_of_its_own(size, up, demodulate):
    torch.manual_seed(0)
    layer = ModulatedConv2d(5, 4, size, 6, up=up, demodulate=demodulate).double()
    x = torch.randn(3, 5, 7, 6, dtype=torch.float64, requires_grad=True)
    style = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(x, style), explicit(layer, x, style)
    assert ours.shape == (3, 4, 7 * up, 6 * up)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    wanted = (x, style, *layer.parameters())
    dy = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, wanted, dy), torch.autograd.grad(theirs, wanted, dy), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("up", [1, 2])
def test_second_derivatives(up):
    torch.manual_seed(0)
    layer = ModulatedConv2d(2, 2, 3, 2, up=up).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    style = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x, style), fast_mode=True)


def test_maps_of_variance_1_stay_so_whatever_the_style():
    torch.manual_seed(0)
    layer = ModulatedConv2d(32, 64, 3, 16)
    style = 5 * torch.randn(8, 16) * torch.logspace(-1, 1, 8)[:, None]
    with torch.no_grad():
        y = layer(torch.randn(8, 32, 32, 32), style)[..., 1:-1, 1:-1]
        assert (y.var((2, 3)).mean(1) - 1).abs().max() < 0.1
        layer.demodulate = False
        y = layer(torch.randn(8, 32, 32, 32), style)
        assert y.var((2, 3)).mean(1).max() > 10


def test_half_types_keep_their_range():
    layer = ModulatedConv2d(8, 8, 3, 4).bfloat16()
    y = layer(torch.randn(2, 8, 6, 6).bfloat16(), 1e3 * torch.randn(2, 4).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((0, 4, 3, 2), ValueError, "in_channels must be at least 1, got 0"),
        ((4, 4, 2, 2), ValueError, "kernel_size must be odd, got 2"),
        ((4, 4.0, 3, 2), TypeError, "out_channels must be an integer"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        ModulatedConv2d(*arguments)


def test_bad_maps_and_styles_are_refused():
    with pytest.raises(ValueError, match="up must be 1 or 2, got 3"):
        ModulatedConv2d(4, 4, 3, 2, up=3)
    layer = pf.nn.ModulatedConv2d(4, 4, 3, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 4, H, W\)"):
        layer(torch.zeros(2, 3, 5, 5), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"style must have shape \(2, 2\), got \(3, 2\)"):
        layer(torch.zeros(2, 4, 5, 5), torch.zeros(3, 2))
