"""PacGAN: a discriminator that judges several samples at once.

Lin et al. 2018, "PacGAN: the power of two samples in generative adversarial networks": real samples
come in packs of real ones, generated samples in packs of generated ones. A generator that has lost a
mode makes packs that are less diverse, which a discriminator of single samples cannot see.
"""

from __future__ import annotations

from torch import Tensor


def packed(samples: Tensor, pack: int) -> Tensor:
    """Samples (N, C, ...) in packs (N / pack, pack * C, ...): the channels, or the coordinates of
    points, of `pack` neighbours stand behind each other.

    A view, where the samples are contiguous. Raises `ValueError` for a pack below 1, and where N is
    no multiple of it.
    """
    if pack < 1:
        raise ValueError(f"pack must be at least 1, got {pack}")
    if len(samples) % pack:
        raise ValueError(f"samples must come in packs of {pack}, got {len(samples)}")
    if pack == 1:
        return samples
    return samples.reshape(len(samples) // pack, pack * samples.shape[1], *samples.shape[2:])
