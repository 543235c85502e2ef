"""The networks of pix2pix (Isola et al. 2017, arXiv 1611.07004, section 6.1) and of CycleGAN (Zhu et
al. 2017, arXiv 1703.10593, section 7.2).

In the papers' notation Ck is a 4 x 4 convolution with norm and k channels, CDk one with dropout as
well, c7s1-k a 7 x 7 convolution of stride 1, dk a 3 x 3 one of stride 2, uk its transpose, and Rk a
residual block of two 3 x 3 convolutions. A layer has a bias where it has no norm.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.gan.dcgan import check_images
from pyfastgan.nn import ConvBlock, ConvTransposeBlock, FusedSequential
from pyfastgan.training.config import check_number

_WIDEST = 8  # times the width
_DROPPED = 3  # layers of the U-Net's decoder with dropout


class UNet(nn.Module):
    """Images (N, in_channels, size, size) to images (N, out_channels, size, size) in [-1, 1].

    Encoder C64-C128-C256-C512-...-C512 down to one pixel, leaky ReLU; decoder CD512-CD512-CD512-C512-
    ...-C64 with ReLU, each of whose layers also sees the encoder's map of its size; tanh. At 256 pixels
    and width 64 that is the paper's network. Dropout is the noise of the generator, and stays on in
    evaluation mode; it draws from torch's default generator. Batch norm, too, goes by the batch at hand in evaluation
    mode, as in the paper: a translation depends on what is translated with it.

    Raises `ValueError` for a size that is no power of two of at least 4, and in `forward` for images of
    another shape.
    """

    def __init__(
        self,
        image_size: int = 256,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_power_of_two("image_size", image_size, at_least=4)
        self.image_shape = (in_channels, image_size, image_size)
        depth = image_size.bit_length() - 1
        widths = [width * min(2**level, _WIDEST) for level in range(depth)]
        down = [ConvBlock(in_channels, widths[0], 4, 2, 1, act="leaky_relu", channels_last=True)]
        down += [
            # A norm over the single pixel of the last map would leave nothing of it.
            ConvBlock(a, b, 4, 2, 1, norm=norm if k < depth - 2 else None, act="leaky_relu")
            for k, (a, b) in enumerate(pairwise(widths))
        ]
        up: list[ConvTransposeBlock] = []
        for level in range(depth - 1, -1, -1):
            inputs = widths[level] * (1 if level == depth - 1 else 2)
            if level > 0:
                up.append(ConvTransposeBlock(inputs, widths[level - 1], 4, 2, 1, norm=norm))
            else:
                up.append(ConvTransposeBlock(inputs, out_channels, 4, 2, 1, act="tanh"))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_shape)
        maps: list[Tensor] = []
        x = images
        for block in self.down:
            x = block(x)
            maps.append(x)
        x = maps.pop().relu()
        last = len(self.up) - 1
        for place, block in enumerate(self.up):
            x = block(x)
            if place == last:
                break
            if place < min(_DROPPED, last - 1):  # a small network has fewer than CD512-CD512-CD512
                x = functional.dropout(x, 0.5, training=True)
            # The ReLU of a leaky ReLU is the ReLU itself, so that maps need not be kept without it.
            x = torch.cat([x, maps.pop().relu()], 1)
        return x


class PatchDiscriminator(nn.Module):
    """Images (N, channels, H, W) to a logit for each patch, (N, 1, h, w): C64-C128-C256-C512 and a
    4 x 4 convolution to one channel, the last two layers of stride 1.

    With 3 `layers` of stride 2 a logit sees 70 x 70 pixels. Leaky ReLU (slope 0.2), no norm in the
    first layer and the last.
    """

    def __init__(
        self, channels: int = 3, *, width: int = 64, layers: int = 3, norm: str = "batch"
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("layers", layers)):
            check_number(name, value, int, at_least=1)
        self.channels = channels
        widths = [width * min(2**level, _WIDEST) for level in range(layers + 1)]
        blocks = [ConvBlock(channels, widths[0], 4, 2, 1, act="leaky_relu", channels_last=True)]
        for level, (a, b) in enumerate(pairwise(widths), 1):
            stride = 2 if level < layers else 1
            blocks.append(ConvBlock(a, b, 4, stride, 1, norm=norm, act="leaky_relu"))
        blocks.append(ConvBlock(widths[-1], 1, 4, 1, 1, act="linear"))
        self.main = FusedSequential(*blocks)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"images must be (N, {self.channels}, H, W), got shape {tuple(images.shape)}"
            )
        return self.main(images)


class ResidualBlock(nn.Module):
    """Rk: x + norm(conv(relu(norm(conv(x))))), 3 x 3 with reflection at the edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, 3, norm="instance", act="relu")
        self.second = ConvBlock(channels, channels, 3, norm="instance", act="linear")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(_reflect(self.first(_reflect(x, 1)), 1))


class ResNetGenerator(nn.Module):
    """Images (N, in_channels, size, size) to images (N, out_channels, size, size) in [-1, 1].

    c7s1-64, d128, d256, R256 `blocks` times, u128, u64, c7s1-3 with instance norm and ReLU, tanh at its
    end: the paper has 6 blocks at 128 pixels and 9 from 256 on.

    Raises `ValueError` for a size that is no multiple of 4 of at least 8, and in `forward` for images
    of another shape.
    """

    def __init__(
        self,
        image_size: int = 256,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        blocks: int = 9,
    ) -> None:
        super().__init__()
        check_number("image_size", image_size, int, at_least=8)
        if image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
        self.image_shape = (in_channels, image_size, image_size)
        with_norm: dict[str, Any] = {"norm": "instance", "act": "relu"}
        self.first = ConvBlock(in_channels, width, 7, channels_last=True, **with_norm)
        self.main = nn.Sequential(
            ConvBlock(width, 2 * width, 3, 2, 1, **with_norm),
            ConvBlock(2 * width, 4 * width, 3, 2, 1, **with_norm),
            *(ResidualBlock(4 * width) for _ in range(blocks)),
            ConvTransposeBlock(4 * width, 2 * width, 3, 2, 1, 1, **with_norm),
            ConvTransposeBlock(2 * width, width, 3, 2, 1, 1, **with_norm),
        )
        self.last = ConvBlock(width, out_channels, 7, act="tanh")
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_shape)
        x = self.main(self.first(_reflect(images, 3)))
        return self.last(_reflect(x, 3))


def check_power_of_two(name: str, value: int, *, at_least: int) -> None:
    """Refuses what is no power of two, or below `at_least`."""
    check_number(name, value, int, at_least=at_least)
    if value & (value - 1):
        raise ValueError(f"{name} must be a power of two, got {value}")


def initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02), batch norm's around 1; channels-last, in which torch convolves
    sooner."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def _reflect(x: Tensor, by: int) -> Tensor:
    return functional.pad(x, (by, by, by, by), mode="reflect")
