"""The networks of progressive growing (Karras et al. 2018, "Progressive growing of GANs for improved
quality, stability, and variation", arXiv 1710.10196, table 2).

Both are as deep as the largest resolution asks for, and run up to the one they are called with: 4, 8,
16, ... pixels. While a resolution fades in, with alpha from 0 to 1, the generator's image is alpha times
its own and 1 - alpha times the one of half the size, enlarged; the discriminator's maps likewise.
Weights start from N(0, 1) and are scaled by He's constant whenever they are used, so that all learn
at one rate. `width` is the channels up to 32 pixels, of which each doubling from there on leaves half.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.gan.dcgan import check_latent, draw_latents, draw_samples
from pyfastgan.gan.translation_networks import check_power_of_two
from pyfastgan.nn import MinibatchStd
from pyfastgan.ops import bias_act
from pyfastgan.training.config import check_number

START = 4
_FULL_WIDTH = 32  # pixels up to which maps have all channels
_EPS = 1e-8


class ScaledConv(nn.Module):
    """act(conv(x, c W) + bias) with c = gain / sqrt(fan-in), the same size out as in for odd kernels."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        act: str = "leaky_relu",
        gain: float = math.sqrt(2),
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(inputs * kernel**2)
        self.act, self.padding = act, kernel // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        # On a CPU the convolution adds the bias as it stores its result, and sums its gradient in passing.
        within, after = (self.bias, None) if x.device.type == "cpu" else (None, self.bias)
        y = functional.conv2d(x, self.weight * self.scale, within, padding=self.padding)
        return bias_act(y, after, self.act, slope=0.2)


class FirstMap(nn.Module):
    """Vectors (N, inputs) to maps (N, outputs, 4, 4): the 4 x 4 convolution of a map of one pixel, padded
    with 3, as the matrix product that it is. Weights are scaled by that convolution's constant."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, START, START))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = math.sqrt(2 / (inputs * START**2))

    def forward(self, x: Tensor) -> Tensor:
        y = (x @ (self.weight.flatten(1) * self.scale)).unflatten(1, self.weight.shape[1:])
        y = y.contiguous(memory_format=torch.channels_last)
        return bias_act(y, self.bias, "leaky_relu", slope=0.2)


def pixel_norm(x: Tensor) -> Tensor:
    """x over the root of its mean square in each pixel, (N, C, ...)."""
    return x * (x.square().mean(1, keepdim=True) + _EPS).rsqrt()


class GrowingGenerator(nn.Module):
    """Latent vectors (N, latent_dim) to images (N, channels, resolution, resolution).

    Args:
        image_size: The largest resolution, a power of two of at least 4.
        channels: Of the images.
        width: Channels up to 32 pixels.
        latent_dim: Numbers in a latent vector.

    Its state holds `phase`, int64 (3,): the resolution, and as a fraction the alpha with which it fades
    in. Called without a resolution and an alpha, the generator is in that phase.
    """

    phase: Tensor

    def __init__(
        self,
        image_size: int = 1024,
        *,
        channels: int = 3,
        width: int = 512,
        latent_dim: int = 512,
    ) -> None:
        super().__init__()
        widths = map_widths(image_size, width)
        check_number("channels", channels, int, at_least=1)
        check_number("latent_dim", latent_dim, int, at_least=1)
        self.image_size, self.latent_dim = image_size, latent_dim
        self.first = FirstMap(latent_dim, widths[0])
        self.second = ScaledConv(widths[0], widths[0], 3)
        self.blocks = nn.ModuleList(
            nn.ModuleList([ScaledConv(a, b, 3), ScaledConv(b, b, 3)]) for a, b in pairwise(widths)
        )
        self.to_image = nn.ModuleList(
            ScaledConv(w, channels, 1, act="linear", gain=1.0) for w in widths
        )
        self.register_buffer("phase", torch.tensor([image_size, 1, 1]))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, latent: Tensor, resolution: int | None = None, alpha: float = 1.0) -> Tensor:
        check_latent(latent, self.latent_dim)
        if resolution is None:
            resolution, alpha = self.current()
        level = level_of(resolution, self.image_size)
        x = pixel_norm(self.second(pixel_norm(self.first(pixel_norm(latent)))))
        for k in range(level):
            if k == level - 1 and alpha < 1:
                smaller = _doubled(self.to_image[k](x))
            x = _doubled(x)
            first, second = self.blocks[k].children()
            x = pixel_norm(second(pixel_norm(first(x))))
        image = self.to_image[level](x)
        return torch.lerp(smaller, image, alpha) if level > 0 and alpha < 1 else image

    def current(self) -> tuple[int, float]:
        """The resolution, and the alpha with which it fades in, read from `phase`."""
        resolution, share, whole = self.phase.tolist()
        return resolution, share / whole

    def latents(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Normal latent vectors (count, latent_dim); vector i is the same for any count.

        The generator takes their directions alone, so that a truncation changes little: it makes the
        coordinates of a direction more alike in size; with 0 there is no direction, and one image.
        """
        return draw_latents(self, self.latent_dim, count, seed, truncation)

    @torch.no_grad()
    def sample(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Images (count, channels, resolution, resolution) of the current phase; image i is the same
        for any count."""
        return draw_samples(self, self.latents(count, seed, truncation))


class GrowingDiscriminator(nn.Module):
    """Images (N, channels, resolution, resolution) to scores (N,), which depend on how much the images
    of the batch differ.

    Arguments are those of `GrowingGenerator`; `group_size` that of `pyfastgan.nn.MinibatchStd`.
    """

    def __init__(
        self,
        image_size: int = 1024,
        *,
        channels: int = 3,
        width: int = 512,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        widths = map_widths(image_size, width)
        check_number("channels", channels, int, at_least=1)
        self.image_size, self.channels = image_size, channels
        self.from_image = nn.ModuleList(ScaledConv(channels, w, 1) for w in widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(ScaledConv(b, b, 3), ScaledConv(b, a, 3), nn.AvgPool2d(2))
            for a, b in pairwise(widths)
        )
        last = widths[0]
        self.last = nn.Sequential(
            MinibatchStd(group_size),
            ScaledConv(last + 1, last, 3),
            ScaledConv(last, last, START, padding=0),
            ScaledConv(last, 1, 1, act="linear", gain=1.0),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, alpha: float = 1.0) -> Tensor:
        resolution = images.shape[-1]
        if images.ndim != 4 or images.shape[1:] != (self.channels, resolution, resolution):
            raise ValueError(
                f"images must be square, (N, {self.channels}, H, H), got {tuple(images.shape)}"
            )
        level = level_of(resolution, self.image_size)
        if self.channels == 1:
            # The strides of one channel leave it open which layout this is, and torch would take the slower.
            images = images.reshape(-1, resolution, resolution, 1).permute(0, 3, 1, 2)
        x = self.from_image[level](images)
        for k in reversed(range(level)):
            x = self.blocks[k](x)
            if k == level - 1 and alpha < 1:
                smaller = self.from_image[k](functional.avg_pool2d(images, 2))
                x = torch.lerp(smaller, x, alpha)
        return self.last(x).reshape(-1)


def map_widths(image_size: int, width: int) -> list[int]:
    """The channels of the maps of 4, 8, ... image_size pixels.

    Raises `ValueError` for a size that is no power of two of at least 4, and for a width of which
    nothing would be left.
    """
    check_power_of_two("image_size", image_size, at_least=START)
    least = max(1, image_size // _FULL_WIDTH)
    check_number("width", width, int, at_least=least)
    levels = image_size.bit_length() - START.bit_length() + 1
    return [width // max(1, START * 2**k // _FULL_WIDTH) for k in range(levels)]


def level_of(resolution: int, image_size: int) -> int:
    """0 for 4 pixels, 1 for 8, and so on; refuses what is no such resolution up to `image_size`."""
    check_power_of_two("resolution", resolution, at_least=START)
    if resolution > image_size:
        raise ValueError(f"resolution must be at most {image_size}, got {resolution}")
    return resolution.bit_length() - START.bit_length()


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2)
