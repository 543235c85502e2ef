"""VQ-VAE: van den Oord et al. 2017 (arXiv 1711.00937), "Neural discrete representation learning"."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.data.datasets import check_range
from pyfastgan.nn import ConvBlock, ConvTransposeBlock, VectorQuantizer
from pyfastgan.ops import random_uniform

# Decoded at once, so that a large count fits in memory.
BATCH = 256


class Terms(NamedTuple):
    """What a `VQVAE` returns.

    images      of the shape of its input, in [-1, 1] for most of it: the reconstruction
    indices     (N, h, w) int64, the code of each place
    loss        scalar: commitment, and the codebook's loss where it is learned by one
    perplexity  scalar: exp of the entropy of the codes' frequencies in this batch
    usage       scalar: the share of the codes that this batch uses
    """

    images: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor
    usage: Tensor


class VQVAE(nn.Module):
    """Images to a map of codes of a learned codebook, and back.

    4 x 4 convolutions of stride 2, a 3 x 3 one and residual blocks, as in section 4.1 of the paper; the
    decoder mirrors them.

    Args:
        shape: (C, H, W) of an image; H and W are multiples of 2^`halvings`.
        quantizer: Turns maps of its width into codes.
        width: Channels.
        halvings: Convolutions of stride 2: an image becomes a map of H / 2^halvings.
        residual_blocks: On either side; their hidden layer has half the channels.

    Raises `ValueError` for a size that cannot be halved that often and for counts below 1.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        quantizer: VectorQuantizer,
        *,
        width: int = 128,
        halvings: int = 2,
        residual_blocks: int = 2,
    ) -> None:
        super().__init__()
        check_sizes(shape, width, halvings)
        channels, height, across = shape
        step = 2**halvings
        self.shape = shape
        self.map_shape = (height // step, across // step)
        self.quantizer = quantizer
        inner = quantizer.codebook.shape[1]
        self.encoder = nn.Sequential(
            *descent(channels, width, halvings, residual_blocks), nn.Conv2d(width, inner, 1)
        )
        self.decoder = nn.Sequential(*ascent(inner, width, channels, halvings, residual_blocks))

    def forward(self, images: Tensor) -> Terms:
        """Images (N, C, H, W) in [-1, 1] to their reconstruction; in training the codebook follows."""
        check_images(images, self.shape)
        found = self.quantizer(self.encoder(images))
        return Terms(self.decoder(found.quantized), *found[1:])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The codes of images (N, C, H, W): int64 (N, h, w). In evaluation mode nothing follows them."""
        index: Tensor = self.quantizer(self.encoder(images)).indices
        return index

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] of codes, int64 (N, h, w).

        Raises:
            TypeError, ValueError: Codes of another dtype or shape, or that are none of the codebook.
        """
        check_codes("codes", codes, self.map_shape)
        parts = [self.decoder(self.quantizer.lookup(part)) for part in codes.split(BATCH)]
        return torch.cat(parts).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Images (count, C, H, W) of codes drawn by their frequency, each for itself; map i is the same
        for any count.

        What lies together in a picture is thereby lost: pictures need a prior over the codes.
        """
        codes = draw_codes(self.quantizer, count, self.map_shape, seed)
        return self.decode(codes)


def descent(inputs: int, width: int, halvings: int, residual_blocks: int) -> list[nn.Module]:
    """The layers of an encoder, up to maps of `width` channels."""
    return [
        *(ConvBlock(width if i else inputs, width, 4, 2, 1, act="relu") for i in range(halvings)),
        nn.Conv2d(width, width, 3, 1, 1),
        *(_Residual(width) for _ in range(residual_blocks)),
        nn.ReLU(),
    ]


def ascent(
    inputs: int, width: int, outputs: int, halvings: int, residual_blocks: int
) -> list[nn.Module]:
    """The layers of a decoder, which mirror an encoder's."""
    return [
        nn.Conv2d(inputs, width, 3, 1, 1),
        *(_Residual(width) for _ in range(residual_blocks)),
        nn.ReLU(),
        *(ConvTransposeBlock(width, width, 4, 2, 1, act="relu") for _ in range(halvings - 1)),
        ConvTransposeBlock(width, outputs, 4, 2, 1, act="linear"),
    ]


class _Residual(nn.Module):
    """x + conv1(relu(conv3(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(width // 2, 1)
        self.first = ConvBlock(width, hidden, 3, 1, 1, act="relu")
        self.second = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(functional.relu(x)))


def check_sizes(shape: tuple[int, int, int], width: int, halvings: int) -> None:
    """Refuse images that cannot be halved that often, and counts below 1."""
    for name, count in (("width", width), ("halvings", halvings)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    _, height, across = shape
    step = 2**halvings
    if height % step or across % step:
        raise ValueError(
            f"the size of the images must be a multiple of 2^halvings = {step},"
            f" got {height} x {across}"
        )


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Refuse images of another shape, and on a CPU ones far out of range."""
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"images must be of shape (N, {wanted}), got {tuple(images.shape)}")
    check_range("images", images)


def check_codes(name: str, codes: Tensor, shape: tuple[int, int]) -> None:
    """Refuse what is no map of codes of that shape."""
    if codes.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {codes.dtype}")
    if codes.ndim != 3 or tuple(codes.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be of shape (N, {wanted}), got {tuple(codes.shape)}")


def draw_codes(
    quantizer: VectorQuantizer,
    count: int,
    shape: tuple[int, int],
    seed: int | None,
    stream: int = 0,
) -> Tensor:
    """Maps of codes int64 (count, h, w), each code drawn for itself by its frequency."""
    share = quantizer.counts / quantizer.counts.sum()
    u = random_uniform((count, *shape), seed, stream=stream, device=share.device)
    return torch.searchsorted(share.cumsum(0), u).clamp(max=len(share) - 1)
