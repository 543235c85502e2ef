"""The networks of StyleGAN2 (Karras et al. 2020, "Analyzing and improving the image quality of
StyleGAN", arXiv 1912.04958) at 8 to 128 pixels.

A mapping network turns the direction of a latent vector into a style. The generator begins with a
learned map of 4 x 4 pixels; convolutions that the style modulates, with noise added to each map, double
it, and every resolution adds its image to the enlarged one of the resolution before. The discriminator
is residual. Weights start from N(0, 1) and are scaled by He's constant whenever they are used. `width` is
the channels up to 32 pixels, of which each doubling from there on leaves half.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.gan.dcgan import check_images, check_latent, check_network, draw_latents
from pyfastgan.gan.latent import check_truncation
from pyfastgan.gan.progressive import START, ScaledConv, map_widths, pixel_norm
from pyfastgan.nn import MinibatchStd, ModulatedConv2d
from pyfastgan.nn.modulated_conv import BINOMIAL
from pyfastgan.ops import bias_act, random_normal, upfirdn2d

_SLOPE = 0.2
_GAIN = math.sqrt(2)
# The mapping network learns so many times slower than the others.
_MAPPING_RATE = 0.01
_SAMPLE_BATCH = 256


class ScaledLinear(nn.Module):
    """act(x (c W)' + rate bias) with c = rate / sqrt(fan-in), and W from N(0, 1 / rate^2)."""

    def __init__(
        self, inputs: int, outputs: int, *, act: str = "leaky_relu", rate: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.rate, self.act = rate / math.sqrt(inputs), rate, act

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight * self.scale)
        gain = 1.0 if self.act == "linear" else _GAIN
        return bias_act(y, self.bias * self.rate, self.act, slope=_SLOPE, gain=gain)


class StyledConv(nn.Module):
    """A modulated convolution, noise of one number a pixel, bias and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, up: int = 1) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style_dim, up=up)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        y = self.conv(x, style)
        if noise is not None:
            y = y + self.strength * noise
        return bias_act(y, self.bias, "leaky_relu", slope=_SLOPE, gain=_GAIN)


class ToImage(nn.Module):
    """A modulated 1 x 1 convolution to the channels of images, whose weights keep their size."""

    def __init__(self, inputs: int, channels: int, style_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, channels, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.conv(x, style) + self.bias[:, None, None]


class StyleGenerator(nn.Module):
    """Latent vectors (N, latent_dim) to images (N, channels, image_size, image_size).

    Args:
        image_size: 8, 16, 32, 64 or 128.
        channels: Of the images.
        width: Channels of the maps up to 32 pixels.
        latent_dim: Numbers in a latent vector, and in a style.
        mapping_layers: Of the network from one to the other.

    Its state holds `mean_style`, the moving average of styles that a truncation pulls towards, and
    `mean_length`, that of the path lengths. Raises `ValueError` or `TypeError` for other arguments.
    """

    mean_style: Tensor
    mean_length: Tensor

    def __init__(
        self,
        image_size: int = 64,
        *,
        channels: int = 3,
        width: int = 64,
        latent_dim: int = 64,
        mapping_layers: int = 4,
    ) -> None:
        super().__init__()
        check_network(
            image_size,
            channels=channels,
            width=width,
            latent_dim=latent_dim,
            mapping_layers=mapping_layers,
        )
        self.image_size, self.latent_dim = image_size, latent_dim
        widths = map_widths(image_size, width)
        self.mapping = nn.Sequential(
            *(
                ScaledLinear(latent_dim, latent_dim, rate=_MAPPING_RATE)
                for _ in range(mapping_layers)
            )
        )
        self.start = nn.Parameter(torch.randn(1, widths[0], START, START))
        convs = [StyledConv(widths[0], widths[0], latent_dim)]
        for a, b in pairwise(widths):
            convs += [StyledConv(a, b, latent_dim, up=2), StyledConv(b, b, latent_dim)]
        self.convs = nn.ModuleList(convs)
        self.to_image = nn.ModuleList(ToImage(w, channels, latent_dim) for w in widths)
        self.register_buffer("mean_style", torch.zeros(latent_dim))
        self.register_buffer("mean_length", torch.zeros(()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def layers(self) -> int:
        """How many styles an image has: one a convolution, and one for the last image."""
        return len(self.convs) + 1

    def styles(self, latent: Tensor, truncation: float | None = None) -> Tensor:
        """Styles (N, latent_dim) of latent vectors (N, latent_dim).

        With a truncation t, mean_style + t (style - mean_style): 1 changes nothing, 0 gives one image.
        """
        check_truncation(truncation)
        styles = self.mapping(pixel_norm(check_latent(latent, self.latent_dim)))
        if truncation is None:
            return styles
        return torch.lerp(self.mean_style, styles, truncation)

    def noise(
        self, count: int, seed: int, *, stream: int = 0, sample_offset: int = 0
    ) -> list[Tensor]:
        """Normal maps (count, 1, H, W), one a convolution; those of sample i are the same for any
        count."""
        like = self.start
        sizes = [START * 2 ** ((k + 1) // 2) for k in range(len(self.convs))]
        return [
            random_normal(
                (count, 1, size, size),
                seed,
                stream=stream * 32 + 1 + k,
                sample_offset=sample_offset,
                dtype=like.dtype,
                device=like.device,
            )
            for k, size in enumerate(sizes)
        ]

    def draw(self, styles: Tensor, noise: list[Tensor] | None = None) -> Tensor:
        """Images of styles (N, layers, latent_dim), without noise if none is given."""
        maps: list[Tensor | None] = [None] * len(self.convs) if noise is None else [*noise]
        x = self.start.expand(len(styles), -1, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.convs[0](x, styles[:, 0], maps[0])
        image = self.to_image[0](x, styles[:, 1])
        for k in range(1, len(self.convs), 2):
            x = self.convs[k](x, styles[:, k], maps[k])
            x = self.convs[k + 1](x, styles[:, k + 1], maps[k + 1])
            image = upfirdn2d(image, [2 * tap for tap in BINOMIAL], up=2, padding=(2, 1))
            image = image + self.to_image[(k + 1) // 2](x, styles[:, k + 2])
        return image

    def forward(self, latent: Tensor, noise: list[Tensor] | None = None) -> Tensor:
        styles = self.styles(latent)
        return self.draw(styles[:, None].expand(-1, self.layers, -1), noise)

    def latents(self, count: int, seed: int | None = None) -> Tensor:
        """Normal latent vectors (count, latent_dim); vector i is the same for any count."""
        return draw_latents(self, self.latent_dim, count, seed)

    @torch.no_grad()
    def sample(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Images (count, channels, size, size); image i is the same for any count.

        Without a seed one is drawn from torch's default generator. A truncation is that of `styles`.
        """
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        images = []
        styles = self.styles(self.latents(count, seed), truncation)
        for start in range(0, count, _SAMPLE_BATCH):
            part = styles[start : start + _SAMPLE_BATCH]
            noise = self.noise(len(part), seed, sample_offset=start)
            images.append(self.draw(part[:, None].expand(-1, self.layers, -1), noise))
        return torch.cat(images)


class _Halving(nn.Module):
    """x (N, C, H, W) to (N, outputs, H / 2, W / 2): two convolutions, beside one of 1 x 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ScaledConv(inputs, inputs, 3)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.beside = nn.Parameter(torch.randn(outputs, inputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.shape[1]
        y = upfirdn2d(self.first(x), BINOMIAL, padding=(2, 2))
        y = functional.conv2d(y, self.weight * (1 / math.sqrt(9 * inputs)), stride=2)
        # Half the variance from either side.
        y = bias_act(y, self.bias, "leaky_relu", slope=_SLOPE, gain=1.0)
        x = upfirdn2d(x, BINOMIAL, down=2, padding=(1, 1))
        return y + functional.conv2d(x, self.beside * (1 / math.sqrt(2 * inputs)))


class StyleDiscriminator(nn.Module):
    """Images (N, channels, size, size) to logits (N,), which depend on how much the images of the batch
    differ.

    Arguments are those of `StyleGenerator`; `group_size` that of `pyfastgan.nn.MinibatchStd`.
    """

    def __init__(
        self, image_size: int = 64, *, channels: int = 3, width: int = 64, group_size: int = 4
    ) -> None:
        super().__init__()
        check_network(image_size, channels=channels, width=width, group_size=group_size)
        self.image_shape = (channels, image_size, image_size)
        widths = map_widths(image_size, width)[::-1]
        last = widths[-1]
        self.main = nn.Sequential(
            ScaledConv(channels, widths[0], 1),
            *(_Halving(a, b) for a, b in pairwise(widths)),
            MinibatchStd(group_size),
            ScaledConv(last + 1, last, 3),
            nn.Flatten(),
            ScaledLinear(last * START**2, last),
            ScaledLinear(last, 1, act="linear"),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_shape)
        return self.main(images.contiguous(memory_format=torch.channels_last)).reshape(-1)
