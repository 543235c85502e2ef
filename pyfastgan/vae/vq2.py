"""VQ-VAE-2 with two levels: Razavi, van den Oord & Vinyals 2019 (arXiv 1906.00446), "Generating diverse
high-fidelity images with VQ-VAE-2"."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyfastgan.nn import VectorQuantizer
from pyfastgan.nn.vector_quantizer import Quantized
from pyfastgan.vae.vq import (
    BATCH,
    ascent,
    check_codes,
    check_images,
    check_sizes,
    descent,
    draw_codes,
)

LEVELS = ("top", "bottom")


class TwoLevels(NamedTuple):
    """What a `VQVAE2` returns; where there are two, the top level comes first.

    images      of the shape of its input, in [-1, 1] for most of it: the reconstruction
    indices     (N, h/2, w/2) and (N, h, w) int64, the code of each place
    loss        scalar: commitment, and the codebooks' loss where they are learned by one
    perplexity  (2,): exp of the entropy of the codes' frequencies in this batch
    usage       (2,): the share of the codes that this batch uses
    """

    images: Tensor
    indices: tuple[Tensor, Tensor]
    loss: Tensor
    perplexity: Tensor
    usage: Tensor


class VQVAE2(nn.Module):
    """Images to two maps of codes, and back (algorithm 1 of the paper).

    The top map is half as wide and high as the bottom one. It is quantised first, and the bottom level
    sees what it says, so that it need not say it again; the decoder sees both.

    Args:
        shape: (C, H, W) of an image; H and W are multiples of 2^(`halvings` + 1).
        top: Turns maps of its width into codes.
        bottom: The same for the larger map; as wide as `top`.
        width: Channels.
        halvings: Convolutions of stride 2 below the bottom level, whose map is of H / 2^halvings.
        residual_blocks: Of each encoder and decoder.

    Raises `ValueError` for a size that cannot be halved that often, counts below 1 and codes of
    different width.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        top: VectorQuantizer,
        bottom: VectorQuantizer,
        *,
        width: int = 128,
        halvings: int = 2,
        residual_blocks: int = 2,
    ) -> None:
        super().__init__()
        check_sizes(shape, width, halvings + 1)
        inner = top.codebook.shape[1]
        if bottom.codebook.shape[1] != inner:
            raise ValueError(
                f"bottom must have codes as wide as top's, {inner}, got {bottom.codebook.shape[1]}"
            )
        channels, height, across = shape
        step, blocks = 2**halvings, residual_blocks
        self.shape = shape
        self.map_shapes = (
            (height // step // 2, across // step // 2),
            (height // step, across // step),
        )
        self.top, self.bottom = top, bottom
        self.encoder = nn.Sequential(*descent(channels, width, halvings, blocks))
        self.top_encoder = nn.Sequential(
            *descent(width, width, 1, blocks), nn.Conv2d(width, inner, 1)
        )
        self.top_decoder = nn.Sequential(*ascent(inner, width, width, 1, blocks))
        self.bottom_encoder = nn.Conv2d(2 * width, inner, 1)
        self.rise = nn.ConvTranspose2d(inner, inner, 4, 2, 1)
        self.decoder = nn.Sequential(*ascent(2 * inner, width, channels, halvings, blocks))

    def forward(self, images: Tensor) -> TwoLevels:
        """Images (N, C, H, W) in [-1, 1] to their reconstruction; in training the codebooks follow."""
        top, bottom = self._quantise(images)
        return TwoLevels(
            self._paint(top.quantized, bottom.quantized),
            (top.indices, bottom.indices),
            top.loss + bottom.loss,
            torch.stack((top.perplexity, bottom.perplexity)),
            torch.stack((top.usage, bottom.usage)),
        )

    def _quantise(self, images: Tensor) -> tuple[Quantized, Quantized]:
        check_images(images, self.shape)
        seen = self.encoder(images)
        top = self.top(self.top_encoder(seen))
        told = self.top_decoder(top.quantized)
        return top, self.bottom(self.bottom_encoder(torch.cat((told, seen), 1)))

    def _paint(self, top: Tensor, bottom: Tensor) -> Tensor:
        images: Tensor = self.decoder(torch.cat((self.rise(top), bottom), 1))
        return images

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of images (N, C, H, W): int64 (N, h/2, w/2) and (N, h, w). In evaluation mode
        nothing follows them."""
        top, bottom = self._quantise(images)
        return top.indices, bottom.indices

    @torch.no_grad()
    def decode(self, codes: tuple[Tensor, Tensor]) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] of the codes of the top and the bottom level.

        Raises:
            TypeError, ValueError: Codes of another dtype or shape, or that are none of the codebooks.
        """
        if not isinstance(codes, tuple) or len(codes) != 2:
            raise TypeError("codes must be a pair, those of the top level and of the bottom level")
        for name, part, shape in zip(LEVELS, codes, self.map_shapes):
            check_codes(f"{name} codes", part, shape)
        if len(codes[0]) != len(codes[1]):
            raise ValueError(
                f"codes must be of as many images on both levels, got {len(codes[0])} and"
                f" {len(codes[1])}"
            )
        parts = [
            self._paint(self.top.lookup(top), self.bottom.lookup(bottom))
            for top, bottom in zip(*(part.split(BATCH) for part in codes))
        ]
        return torch.cat(parts).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Images (count, C, H, W) of codes drawn by their frequency, each for itself; the maps of image
        i are the same for any count.

        What lies together in a picture is thereby lost: pictures need a prior over the codes.
        """
        chosen = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        quantizers = (self.top, self.bottom)
        top, bottom = (
            draw_codes(quantizer, count, shape, chosen, stream)
            for stream, (quantizer, shape) in enumerate(zip(quantizers, self.map_shapes))
        )
        return self.decode((top, bottom))
