"""The DCGAN generator and discriminator (Radford et al. 2015, arXiv 1511.06434).

Every layer is a 4 x 4 convolution. The generator turns the latent vector into a 4 x 4 map and
doubles it until `image_size` is reached, halving the channels; the discriminator mirrors it.
`width` counts the channels at half the image size, so that the widest map holds `width * image_size
/ 8` channels. ReLU in the generator and tanh at its end, leaky ReLU (slope 0.2) in the
discriminator; batch norm after every layer but those at the image and at the logit, which have a
bias: without one a narrow generator cannot paint an even background.

At 64 pixels and width 64 these are the networks of PyTorch's DCGAN tutorial, but for these biases
and the sigmoid at its discriminator's end. Its weights load, with zero for the biases that it
lacks:

    generator = Generator(64, channels=3, width=64, latent_dim=100)
    generator.load_state_dict(torch.load("netG.pth", weights_only=True))
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.latent import draw_normal
from pyfastgan.nn import ConvBlock, ConvTransposeBlock, FusedSequential

IMAGE_SIZES = (8, 16, 32, 64, 128)
# Images that are drawn at once when sampling, so that a large count fits in memory.
_SAMPLE_BATCH = 256


class Generator(nn.Module):
    """Latent vectors (N, latent_dim) or (N, latent_dim, 1, 1) to images (N, channels, size, size).

    Images lie in [-1, 1]; `image_size` is 8, 16, 32, 64 or 128 pixels. Raises `ValueError` or
    `TypeError`, naming the argument, for any other size, for counts that are not positive integers,
    and in `forward` for latent vectors of another shape or an integer dtype.
    """

    def __init__(
        self, image_size: int = 64, *, channels: int = 3, width: int = 64, latent_dim: int = 100
    ) -> None:
        super().__init__()
        widths = _widths(image_size, channels=channels, width=width, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        blocks = [ConvTransposeBlock(latent_dim, widths[0], 4, 1, 0, norm="batch")]
        blocks += [ConvTransposeBlock(a, b, 4, 2, 1, norm="batch") for a, b in pairwise(widths)]
        blocks += [ConvTransposeBlock(widths[-1], channels, 4, 2, 1, act="tanh")]
        self.main = FusedSequential(*blocks)
        _initialise(self)

    def forward(self, latent: Tensor) -> Tensor:
        _check_floating("latent", latent)
        if tuple(latent.shape[1:]) not in ((self.latent_dim,), (self.latent_dim, 1, 1)):
            raise ValueError(
                f"latent must be of shape (N, {self.latent_dim}) or (N, {self.latent_dim}, 1, 1), "
                f"not {tuple(latent.shape)}"
            )
        return self.main(latent.reshape(-1, self.latent_dim, 1, 1))

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
        """Images (count, channels, size, size); in evaluation mode image i is the same for any
        count.

        Without a seed one is drawn from torch's default generator.
        """
        return draw_samples(self, self.latents(count, seed, truncation))


class Discriminator(nn.Module):
    """Images (N, channels, size, size) to logits (N,); D = sigmoid(logit).

    Arguments and errors are those of `Generator`. `norm` is "batch", or None for a critic whose
    output for one sample does not depend on the others, as a penalty of each sample's gradient
    asks; its weights then start as He et al. 2015 have it.
    """

    def __init__(
        self,
        image_size: int = 64,
        *,
        channels: int = 3,
        width: int = 64,
        norm: str | None = "batch",
    ) -> None:
        super().__init__()
        widths = _widths(image_size, channels=channels, width=width)[::-1]
        self.image_shape = (channels, image_size, image_size)
        blocks = [
            ConvBlock(channels, widths[0], 4, 2, 1, act="leaky_relu", slope=0.2, channels_last=True)
        ]
        blocks += [
            ConvBlock(a, b, 4, 2, 1, norm=norm, act="leaky_relu", slope=0.2)
            for a, b in pairwise(widths)
        ]
        blocks += [ConvBlock(widths[-1], 1, 4, 1, 0, act="linear")]
        self.main = FusedSequential(*blocks)
        _initialise(self)
        if norm is None:
            # N(0, 0.02) relies on the norm: without it, scores would be tiny at first.
            for block in blocks:
                nn.init.kaiming_normal_(block.conv.weight, 0.2)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_shape)
        return self.main(images).reshape(-1)


def draw_latents(
    network: nn.Module,
    latent_dim: int,
    count: int,
    seed: int | None,
    truncation: float | None = None,
) -> Tensor:
    """Normal latent vectors (count, latent_dim) of the dtype and on the device of the weights."""
    weight = next(network.parameters())
    of = {"dtype": weight.dtype, "device": weight.device}
    return draw_normal((count, latent_dim), seed, truncation=truncation, **of)  # type: ignore[arg-type]


def draw_samples(network: nn.Module, latents: Tensor) -> Tensor:
    """A generator's samples of latent vectors, so many at a time that a large count fits in
    memory."""
    return torch.cat([network(part) for part in latents.split(_SAMPLE_BATCH)])


def check_latent(latent: Tensor, latent_dim: int) -> Tensor:
    """The latent vectors, if they are floating point and of shape (N, latent_dim)."""
    _check_floating("latent", latent)
    if latent.ndim != 2 or latent.shape[1] != latent_dim:
        raise ValueError(f"latent must be of shape (N, {latent_dim}), not {tuple(latent.shape)}")
    return latent


def check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses what is not floating point and of shape (N, *shape)."""
    _check_floating("images", images)
    if tuple(images.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"images must be of shape (N, {wanted}), not {tuple(images.shape)}")


def check_network(image_size: int, **counts: int) -> None:
    """Refuses an image size that is not one of `IMAGE_SIZES`, and counts that are not positive
    integers."""
    if not isinstance(image_size, int) or image_size not in IMAGE_SIZES:
        sizes = ", ".join(map(str, IMAGE_SIZES))
        raise ValueError(f"image_size must be one of {sizes}, not {image_size!r}")
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"{name} must be an integer, not {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def _widths(image_size: int, **counts: int) -> list[int]:
    """The channels of the maps of 4, 8, ... image_size / 2 pixels, after checking every
    argument."""
    check_network(image_size, **counts)
    doublings = image_size.bit_length() - 3
    return [counts["width"] * 2**power for power in reversed(range(doublings))]


def _check_floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, not {value.dtype}")


def _initialise(network: Generator | Discriminator) -> None:
    """Weights from N(0, 0.02) (Radford et al. 2015, section 4); batch norm's around 1, as its
    code. Channels-last, in which torch convolves sooner."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.main.register_load_state_dict_pre_hook(_fill_biases)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def _fill_biases(row: FusedSequential, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Let the weights of convolutions load without the biases that they have here."""
    for name, parameter in row.named_parameters():
        layer, kind = name.rsplit(".", 1)
        if kind == "bias" and layer.endswith(".0") and f"{prefix}{layer}.weight" in state:
            state.setdefault(f"{prefix}{name}", torch.zeros_like(parameter))
