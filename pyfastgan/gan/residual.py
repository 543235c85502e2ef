"""A residual generator and critic without norm layers, in the manner of R3GAN.

Huang et al. 2024, "The GAN is dead; long live the GAN! A modern baseline GAN" (arXiv 2501.05441),
section 4, in small: a residual block a resolution, leaky ReLU (slope 0.2), resampling by nearest
neighbour and by averages of 2 x 2 pixels, and the last convolution of every block starting at zero
(Zhang et al. 2019, "Fixup initialization"). The 3 x 3 convolutions are neither grouped nor inverted
bottlenecks, which are slow on CPUs. `width` counts the channels at half the image size, as in
`pyfastgan.gan.dcgan`; every halving of the map doubles them, and maps of the full size have half as
many, at least 8.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.dcgan import (
    check_images,
    check_latent,
    check_network,
    draw_latents,
    draw_samples,
)
from pyfastgan.nn import ConvBlock

_START = 4  # pixels a side of the smallest map
_SLOPE = 0.2


class ResidualBlock(nn.Module):
    """x + conv(act(conv(x))) over maps (N, channels, H, W); the identity to begin with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, 3, 1, 1, act="leaky_relu", slope=_SLOPE)
        self.second = ConvBlock(channels, channels, 3, 1, 1, act="linear", bias=False)
        _he_normal(self.first.conv, gain=2 / (1 + _SLOPE**2))
        nn.init.zeros_(self.second.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class ResidualGenerator(nn.Module):
    """Latent vectors (N, latent_dim) to images (N, channels, size, size).

    Arguments and errors are those of `pyfastgan.gan.Generator`; there is no tanh at its end, so
    that images may leave [-1, 1] a little.
    """

    def __init__(
        self, image_size: int = 64, *, channels: int = 3, width: int = 64, latent_dim: int = 100
    ) -> None:
        super().__init__()
        check_network(image_size, channels=channels, width=width, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        widths = _widths(image_size, width)[::-1]
        layers: list[Any] = [
            nn.Linear(latent_dim, widths[0] * _START**2),
            nn.Unflatten(1, (widths[0], _START, _START)),
            nn.LeakyReLU(_SLOPE),
            ResidualBlock(widths[0]),
        ]
        _he_normal(layers[0])
        for before, after in itertools.pairwise(widths):
            # Mixed before it is enlarged, at a quarter of the cost.
            layers += [_mix(before, after), nn.Upsample(scale_factor=2), ResidualBlock(after)]
        layers += [nn.LeakyReLU(_SLOPE), ConvBlock(widths[-1], channels, 3, 1, 1, act="linear")]
        _he_normal(layers[-1].conv)
        self.main = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.main(check_latent(latent, self.latent_dim))

    def latents(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Normal latent vectors (count, latent_dim); vector i is the same for any count. See
        `pyfastgan.gan.latent.draw_normal` for their truncation."""
        return draw_latents(self, self.latent_dim, count, seed, truncation)

    @torch.no_grad()
    def sample(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Images (count, channels, size, size); image i is the same for any count."""
        return draw_samples(self, self.latents(count, seed, truncation))


class ResidualCritic(nn.Module):
    """Images (N, channels, size, size) to scores (N,).

    Arguments and errors are those of `pyfastgan.gan.Discriminator`. No layer mixes samples, and all
    are piecewise linear.
    """

    def __init__(self, image_size: int = 64, *, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        check_network(image_size, channels=channels, width=width)
        self.image_shape = (channels, image_size, image_size)
        widths = _widths(image_size, width)
        layers: list[Any] = [
            ConvBlock(channels, widths[0], 3, 1, 1, act="leaky_relu", slope=_SLOPE)
        ]
        _he_normal(layers[0].conv)
        for before, after in itertools.pairwise(widths):
            layers += [ResidualBlock(before), nn.AvgPool2d(2), _mix(before, after)]
        last = widths[-1]
        layers += [
            ResidualBlock(last),
            ConvBlock(last, last, _START, act="leaky_relu", slope=_SLOPE),
            nn.Flatten(),
            nn.Linear(last, 1),
        ]
        _he_normal(layers[-3].conv)
        _he_normal(layers[-1])
        self.main = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_shape)
        return self.main(images).reshape(-1)


def _mix(before: int, after: int) -> ConvBlock:
    """Another number of channels, pixel by pixel."""
    block = ConvBlock(before, after, 1, act="linear", bias=False)
    _he_normal(block.conv)
    return block


def _he_normal(layer: Any, gain: float = 1.0) -> None:
    """Weights of variance gain / fan-in (He et al. 2015), biases zero."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0.0, (gain / fan_in) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _widths(image_size: int, width: int) -> list[int]:
    """The channels of the maps of image_size, image_size / 2, ... 4 pixels."""
    halvings = image_size.bit_length() - _START.bit_length()
    return [max(width // 2, 8)] + [width * 2**power for power in range(halvings)]
