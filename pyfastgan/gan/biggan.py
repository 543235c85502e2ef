"""The networks of BigGAN (Brock et al. 2019, "Large scale GAN training for high fidelity natural image
synthesis", arXiv 1809.11096, appendix B), and its truncation trick.

The latent vector is cut into as many pieces as there are blocks and one more: the first makes the
4 x 4 map, and each block's norms are told one piece and an embedding of the class that all blocks
share. Spectral norm on all convolutions and linear layers, orthogonal initial weights, self-attention
(Zhang et al. 2019) at 64 pixels, or at half the image size where that is smaller.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from pyfastgan.gan.dcgan import check_images, check_latent, draw_latents
from pyfastgan.gan.latent import check_truncation, draw_normal
from pyfastgan.nn import NormAct
from pyfastgan.training.config import check_number

# Channels of the generator's maps from 4 x 4 on, in units of the width: tables 4 to 9 of the paper for
# 128, 256 and 512 pixels, the authors' later code for 32 and 64, and 16 after 32.
_WIDTHS: dict[int, tuple[int, ...]] = {
    16: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
BIGGAN_SIZES = tuple(_WIDTHS)
_START = 4
_ATTENTION = 64
# Passes and samples a pass of the statistics that truncated latent vectors need.
_STANDING_PASSES, _STANDING_BATCH = 16, 64
_SAMPLE_BATCH = 256
_UNSET = object()


class SelfAttention(nn.Module):
    """x + gamma * o(attention) over maps (N, channels, H, W), H and W even: every pixel looks at the
    largest keys and values of all 2 x 2 pixels. Without a scale on the products, and the identity to
    begin with, as gamma starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, outer = max(channels // 8, 1), max(channels // 2, 1)
        self.query = _conv(channels, inner, 1, bias=False)
        self.key = _conv(channels, inner, 1, bias=False)
        self.value = _conv(channels, outer, 1, bias=False)
        self.out = _conv(outer, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key = functional.max_pool2d(self.key(x), 2).flatten(2)
        value = functional.max_pool2d(self.value(x), 2).flatten(2)
        # Written out: torch's fused attention cannot be differentiated twice, as penalties need.
        share = torch.softmax(query.mT @ key, 2)
        seen = (value @ share.mT).unflatten(2, x.shape[2:])
        return torch.addcmul(x, self.gamma, self.out(seen))


class ConditionalNorm(nn.Module):
    """relu(batch norm(x) * (1 + gain) + bias), where gain and bias are linear in a vector a sample."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = NormAct("batch", channels, act="linear", affine=False)
        self.gain = spectral_norm(_orthogonal(nn.Linear(condition, channels, bias=False)))
        self.bias = spectral_norm(_orthogonal(nn.Linear(condition, channels, bias=False)))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = (1 + self.gain(condition)), self.bias(condition)
        return torch.addcmul(bias[..., None, None], self.norm(x), gain[..., None, None]).relu()


class UpBlock(nn.Module):
    """A residual block of the generator that doubles the size."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(inputs, condition)
        self.conv1 = _conv(inputs, outputs, 3)
        self.norm2 = ConditionalNorm(outputs, condition)
        self.conv2 = _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(_doubled(self.norm1(x, condition)))
        h = self.conv2(self.norm2(h, condition))
        # A 1 x 1 convolution and the doubling may change places, at a quarter of the cost.
        return h + _doubled(self.shortcut(x))


class DownBlock(nn.Module):
    """A residual block of the discriminator.

    Args:
        inputs, outputs: Channels.
        halve: Whether it halves the size.
        first: Whether it sees the image, to which no activation is applied.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1 = _conv(inputs, outputs, 3)
        self.conv2 = _conv(outputs, outputs, 3)
        changes = halve or inputs != outputs
        self.shortcut = _conv(inputs, outputs, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x if self.first else x.relu()).relu())
        if self.halve:
            # Averages and a 1 x 1 convolution may change places.
            h, x = functional.avg_pool2d(h, 2), functional.avg_pool2d(x, 2)
        return h + self.shortcut(x)


class BigGANGenerator(nn.Module):
    """Latent vectors (N, latent_dim) and labels (N,) to images (N, channels, size, size) in [-1, 1].

    Args:
        image_size: 16, 32, 64, 128, 256 or 512.
        classes: How many.
        channels: Of the images.
        width: ch of the paper.
        latent_dim: A multiple of the number of blocks + 1.
        embedding: Numbers that a class is embedded in.
    """

    def __init__(
        self,
        image_size: int = 128,
        *,
        classes: int,
        channels: int = 3,
        width: int = 96,
        latent_dim: int = 120,
        embedding: int = 128,
    ) -> None:
        super().__init__()
        check_biggan(image_size, latent_dim)
        for name, value in (("classes", classes), ("width", width), ("embedding", embedding)):
            check_number(name, value, int, at_least=1)
        self.latent_dim, self.classes = latent_dim, classes
        widths = [width * factor for factor in _WIDTHS[image_size]]
        self.piece = latent_dim // len(widths)
        condition = self.piece + embedding
        self.embed = nn.Embedding(classes, embedding)
        _orthogonal(self.embed)
        self.linear = spectral_norm(_orthogonal(nn.Linear(self.piece, _START**2 * widths[0])))
        self.blocks = nn.ModuleList(UpBlock(a, b, condition) for a, b in pairwise(widths))
        self.attention = SelfAttention(widths[_attention_place(image_size) + 1])
        self.attention_after = _attention_place(image_size)
        self.norm = NormAct("batch", widths[-1], act="relu")
        self.last = _conv(widths[-1], channels, 3)
        self._standing: Any = _UNSET
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        check_latent(latent, self.latent_dim)
        check_labels(labels, self.classes, len(latent))
        pieces = latent.split(self.piece, 1)
        embedded = self.embed(labels)
        x = self.linear(pieces[0]).unflatten(1, (-1, _START, _START))
        x = x.contiguous(memory_format=torch.channels_last)
        for place, (block, piece) in enumerate(zip(self.blocks, pieces[1:], strict=True)):
            x = block(x, torch.cat([embedded, piece], 1))
            if place == self.attention_after:
                x = self.attention(x)
        return torch.tanh(self.last(self.norm(x)))

    def latents(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Normal latent vectors (count, latent_dim); vector i is the same for any count."""
        return draw_latents(self, self.latent_dim, count, seed, truncation)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        seed: int | None = None,
        truncation: float | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Images (count, channels, size, size); in evaluation mode image i is the same for any count.

        Args:
            count: How many.
            seed: Of the latent vectors.
            truncation: The largest size of a latent number (see `draw_normal`); 0 gives one image a
                class, None takes all.
            labels: int64 (count,); by default the classes in turns.

        Raises `TypeError` or `ValueError` for a truncation below 0, labels out of range or as many as
        not asked for.
        """
        check_truncation(truncation)
        labels = labels_for(self, count, self.classes, labels)
        if not self.training and self._standing != truncation:
            self.standing_statistics(truncation)
        latents = self.latents(count, seed, truncation)
        parts = zip(latents.split(_SAMPLE_BATCH), labels.split(_SAMPLE_BATCH), strict=True)
        return torch.cat([self(*part) for part in parts])

    @torch.no_grad()
    def standing_statistics(self, truncation: float | None = None) -> None:
        """Give the batch norms the statistics of latent vectors of that truncation and classes drawn
        evenly, by passes in training mode, and leave evaluation mode on (appendix C.1 of the paper):
        what was remembered in training is of latent vectors without truncation."""
        weight = self.embed.weight
        norms = [module for module in self.modules() if isinstance(module, NormAct)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the average over all passes
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.zero_()
        self.train()
        labels = torch.arange(_STANDING_BATCH, device=weight.device)
        for k in range(_STANDING_PASSES):
            latents = draw_normal(
                (_STANDING_BATCH, self.latent_dim),
                0,
                truncation=truncation,
                stream=1 + k,
                dtype=weight.dtype,
                device=weight.device,
            )
            self(latents, (labels + k * _STANDING_BATCH) % self.classes)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.eval()
        self._standing = truncation

    def _forget(self) -> None:
        self._standing = _UNSET

    def train(self, mode: bool = True) -> BigGANGenerator:
        self._forget()
        return super().train(mode)

    def regularised(self) -> list[Tensor]:
        """The weights that an orthogonal regularisation is about: all but the embedding."""
        shared = self.embed.weight
        return [p for p in self.parameters() if p.ndim > 1 and p is not shared]


class BigGANDiscriminator(nn.Module):
    """Images (N, channels, size, size) and labels (N,) to scores (N,): blocks without norm, and a
    projection (Miyato and Koyama 2018) of the summed last map on an embedding of the class.

    Arguments are those of `BigGANGenerator`.
    """

    def __init__(
        self, image_size: int = 128, *, classes: int, channels: int = 3, width: int = 96
    ) -> None:
        super().__init__()
        check_biggan(image_size)
        self.image_shape, self.classes = (channels, image_size, image_size), classes
        widths = [width * factor for factor in _WIDTHS[image_size][:0:-1]]
        widths.append(width * _WIDTHS[image_size][0])
        if image_size <= 32:  # as the authors' network for 32 pixels: two blocks keep the size
            widths = [4 * width] * (image_size.bit_length() - 2)
            kept = 2
        else:
            kept = 1
        sides = list(pairwise([channels, *widths]))
        self.blocks = nn.ModuleList(
            DownBlock(a, b, halve=place < len(sides) - kept, first=place == 0)
            for place, (a, b) in enumerate(sides)
        )
        self.attention_after = len(_WIDTHS[image_size]) - 2 - _attention_place(image_size) - 1
        self.attention = SelfAttention(widths[self.attention_after])
        self.linear = spectral_norm(_orthogonal(nn.Linear(widths[-1], 1)))
        self.embed = spectral_norm(_orthogonal(nn.Embedding(classes, widths[-1])))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        check_images(images, self.image_shape)
        check_labels(labels, self.classes, len(images))
        x = images
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == self.attention_after:
                x = self.attention(x)
        features = x.relu().sum((2, 3))
        return self.linear(features)[:, 0] + (self.embed(labels) * features).sum(1)


def check_biggan(image_size: int, latent_dim: int | None = None) -> None:
    """Refuses a size without a table, and latent vectors that cannot be cut into equal pieces."""
    if image_size not in BIGGAN_SIZES or isinstance(image_size, bool):
        sizes = ", ".join(map(str, BIGGAN_SIZES))
        raise ValueError(f"image_size must be one of {sizes}, got {image_size!r}")
    if latent_dim is not None:
        check_number("latent_dim", latent_dim, int, at_least=1)
        pieces = len(_WIDTHS[image_size])
        if latent_dim % pieces:
            raise ValueError(
                f"latent_dim must be a multiple of {pieces}, the blocks at {image_size} pixels and"
                f" one more, got {latent_dim}"
            )


def check_labels(labels: Any, classes: int, count: int) -> None:
    """Refuses what is not int64 (count,) in [0, classes); on a GPU the range is left to the kernel, as
    looking would stall the device."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an int64 tensor, got {kind}")
    if labels.shape != (count,):
        raise ValueError(f"labels must be of shape ({count},), got {tuple(labels.shape)}")
    if labels.device.type == "cpu":
        check_range(labels, classes)


def check_range(labels: Tensor, classes: int) -> None:
    """Refuses labels out of [0, classes)."""
    if torch.compiler.is_compiling() or labels.numel() == 0:
        return
    low, high = labels.aminmax()
    if low < 0 or high >= classes:
        wrong = int(low) if low < 0 else int(high)
        raise ValueError(f"labels must be at least 0 and below {classes}, got {wrong}")


def labels_for(network: nn.Module, count: int, classes: int, labels: Tensor | None) -> Tensor:
    """The labels that are asked for, checked; by default the classes in turns."""
    device = next(network.parameters()).device
    if labels is None:
        return torch.arange(count, device=device) % classes
    check_labels(labels, classes, count)
    check_range(labels, classes)
    return labels.to(device)


def _attention_place(image_size: int) -> int:
    """The block of the generator whose maps have the size of the attention."""
    size = min(_ATTENTION, image_size // 2)
    return size.bit_length() - _START.bit_length() - 1


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2)


def _conv(inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    return spectral_norm(_orthogonal(conv))


def _orthogonal(layer: Any) -> Any:
    """Orthogonal weights (Saxe et al. 2014), no biases."""
    if not layer.weight.is_meta:
        nn.init.orthogonal_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    return layer
