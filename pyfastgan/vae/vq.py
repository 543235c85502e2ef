"""VQ-VAE: van den Oord et al. 2017 (arXiv 1711.00937), "Neural discrete representation learning"."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.nn import ConvBlock, ConvTransposeBlock, VectorQuantizer
from pyfastgan.ops import random_uniform

# Decoded at once, so that a large count fits in memory.
_BATCH = 256


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
        for name, count in (("width", width), ("halvings", halvings)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        channels, height, across = shape
        step = 2**halvings
        if height % step or across % step:
            raise ValueError(
                f"the size of the images must be a multiple of 2^halvings = {step},"
                f" got {height} x {across}"
            )
        self.shape = shape
        self.map_shape = (height // step, across // step)
        self.quantizer = quantizer
        inner = quantizer.codebook.shape[1]
        self.encoder = nn.Sequential(
            *(
                ConvBlock(width if i else channels, width, 4, 2, 1, act="relu")
                for i in range(halvings)
            ),
            nn.Conv2d(width, width, 3, 1, 1),
            *(_Residual(width) for _ in range(residual_blocks)),
            nn.ReLU(),
            nn.Conv2d(width, inner, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(inner, width, 3, 1, 1),
            *(_Residual(width) for _ in range(residual_blocks)),
            nn.ReLU(),
            *(ConvTransposeBlock(width, width, 4, 2, 1, act="relu") for _ in range(halvings - 1)),
            ConvTransposeBlock(width, channels, 4, 2, 1, act="linear"),
        )

    def forward(self, images: Tensor) -> Terms:
        """Images (N, C, H, W) in [-1, 1] to their reconstruction; in training the codebook follows."""
        if tuple(images.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"images must be of shape (N, {wanted}), got {tuple(images.shape)}")
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
        if codes.dtype != torch.int64:
            raise TypeError(f"codes must be int64, got {codes.dtype}")
        if tuple(codes.shape[1:]) != self.map_shape:
            wanted = ", ".join(map(str, self.map_shape))
            raise ValueError(f"codes must be of shape (N, {wanted}), got {tuple(codes.shape)}")
        parts = [self.decoder(self.quantizer.lookup(part)) for part in codes.split(_BATCH)]
        return torch.cat(parts).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Images (count, C, H, W) of codes drawn by their frequency, each for itself; map i is the same
        for any count.

        What lies together in a picture is thereby lost: pictures need a prior over the codes.
        """
        share = self.quantizer.counts / self.quantizer.counts.sum()
        u = random_uniform((count, *self.map_shape), seed, device=share.device)
        codes = torch.searchsorted(share.cumsum(0), u).clamp(max=len(share) - 1)
        return self.decode(codes)


class _Residual(nn.Module):
    """x + conv1(relu(conv3(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(width // 2, 1)
        self.first = ConvBlock(width, hidden, 3, 1, 1, act="relu")
        self.second = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(functional.relu(x)))
