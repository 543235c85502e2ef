"""A convolution whose weights a style scales for each sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.ops import upfirdn2d

# Of the filter that follows an enlarging convolution, and of StyleGAN2's resampling everywhere.
BINOMIAL = (0.125, 0.375, 0.375, 0.125)
_EPS = 1e-8


class ModulatedConv2d(nn.Module):
    """Maps (N, C, H, W) and styles (N, style_dim) to maps (N, out_channels, up H, up W).

    Sample n is convolved with its own weights (Karras et al. 2020, "Analyzing and improving the image
    quality of StyleGAN", section 2.2)

        w[n, o, c] = d[n, o] s[n, c] W[o, c] / sqrt(fan-in),   s = A style + b

    where d makes the squares of w[n, o] add up to 1: maps of variance 1 in, maps of variance 1 out,
    whatever the style. All samples share one convolution, since scaling its input channels by s and its
    result by d is the same. Differentiable any number of times.

    Args:
        in_channels, out_channels: C, and of the result.
        kernel_size: Odd; the result is as large as x.
        style_dim: Numbers in a style.
        demodulate: Whether there is a d.
        up: 1, or 2 for a transposed convolution of stride 2 and `upfirdn2d` after it.

    Raises `ValueError` or `TypeError` for other arguments, and for maps and styles of other shapes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        up: int = 1,
    ) -> None:
        super().__init__()
        counts = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "style_dim": style_dim,
        }
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if up not in (1, 2):
            raise ValueError(f"up must be 1 or 2, got {up!r}")
        self.demodulate, self.up = demodulate, up
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.style = nn.Linear(style_dim, in_channels)
        nn.init.normal_(self.style.weight, 0.0, 1 / math.sqrt(style_dim))
        nn.init.ones_(self.style.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"x must have shape (N, {self.weight.shape[1]}, H, W), got {tuple(x.shape)}"
            )
        if style.shape != (x.size(0), self.style.in_features):
            raise ValueError(
                f"style must have shape ({x.size(0)}, {self.style.in_features}), got {tuple(style.shape)}"
            )
        scales = self.style(style)
        weight = self.weight * self.scale
        y = self._convolve(x * scales[:, :, None, None], weight)
        if self.demodulate:
            # In float32 or wider: squares of half types leave their range.
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            squares = weight.to(wide).square().sum((2, 3))
            d = (scales.to(wide).square() @ squares.T + _EPS).rsqrt()
            y = y * d.to(y.dtype)[:, :, None, None]
        return y

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        size = weight.shape[-1]
        if self.up == 1:
            return functional.conv2d(x, weight, padding=size // 2)
        y = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        # 2 H + size - 2 rows become 2 H; the taps add up to 2, for three of four pixels were zeros.
        spare = 5 - size
        padding = (spare - spare // 2, spare // 2)
        return upfirdn2d(y, [2 * tap for tap in BINOMIAL], padding=padding)

    def extra_repr(self) -> str:
        outputs, inputs, size, _ = self.weight.shape
        return f"{inputs}, {outputs}, {size}, up={self.up}, demodulate={self.demodulate}"
