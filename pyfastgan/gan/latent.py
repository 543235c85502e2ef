"""Latent vectors: normal, truncated, and walks between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyfastgan.ops import random_normal, random_uniform


def draw_normal(
    shape: Sequence[int],
    seed: int | None = None,
    *,
    truncation: float | None = None,
    dtype: torch.dtype | None = None,
    **place: Any,
) -> Tensor:
    """Normal numbers, or those among them of a size up to `truncation` (Brock et al. 2019, section
    3.1): the smaller it is, the more like the typical image, and the more alike, samples are.

    Args:
        shape, seed, dtype: As for `pyfastgan.ops.random_normal`.
        truncation: At least 0; 0 gives zeros, None all numbers.
        place: `stream`, `sample_offset`, `generator` and `device`, as there.

    Raises:
        TypeError, ValueError: A truncation that is no number, not finite or below 0, and what
            `random_normal` refuses.
    """
    if truncation is None:
        return random_normal(shape, seed, dtype=dtype, **place)
    check_truncation(truncation)
    # By the inverse of the distribution: drawing again until all fit would give the numbers of a
    # sample another place in the sequence. In float64, since its tails are steep.
    below = 0.5 * math.erfc(truncation / math.sqrt(2))
    uniform = random_uniform(shape, seed, dtype=torch.float64, **place)
    drawn = torch.special.ndtri(below + (1 - 2 * below) * uniform)
    return drawn.clamp(-truncation, truncation).to(dtype or torch.get_default_dtype())


def check_truncation(truncation: Any) -> None:
    """Refuses what is neither None nor a finite number of at least 0."""
    if truncation is None:
        return
    if isinstance(truncation, bool) or not isinstance(truncation, (int, float)):
        raise TypeError(f"truncation must be a number or None, got {truncation!r}")
    if not math.isfinite(truncation) or truncation < 0:
        raise ValueError(f"truncation must be at least 0, got {truncation}")


def interpolate(start: Tensor, end: Tensor, count: int) -> Tensor:
    """The way from each latent vector to another, on a great circle.

    Normal vectors of many dimensions all have about the same length, and the vectors on a straight
    line between two of them are shorter than any that the generator has seen; so the direction
    turns evenly, and the length changes evenly (White 2016, "Sampling generative networks").

    Args:
        start: (N, D), floating point.
        end: (N, D).
        count: Vectors on each way, both ends included; at least 2.

    Returns:
        (N, count, D). Opposite vectors, between which no great circle is the shortest, and vectors
        of one direction are joined by a straight line.

    Raises `ValueError` for other shapes or a smaller count.
    """
    if start.ndim != 2 or start.shape != end.shape:
        raise ValueError(
            "start and end must both be of shape (N, D), "
            f"not {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if count < 2:
        raise ValueError(f"count must be at least 2, not {count}")
    share = torch.linspace(0, 1, count, dtype=start.dtype, device=start.device)[None, :, None]
    lengths = start.norm(dim=1), end.norm(dim=1)
    cosine = (start * end).sum(1) / (lengths[0] * lengths[1])
    angle = cosine.clamp(-1, 1).acos()[:, None, None]
    units = [vector / length[:, None] for vector, length in zip((start, end), lengths, strict=True)]
    turned = ((1 - share) * angle).sin() * units[0][:, None] + (share * angle).sin() * units[1][
        :, None
    ]
    turned = turned / angle.sin()
    length = torch.lerp(lengths[0][:, None, None], lengths[1][:, None, None], share)
    straight = torch.lerp(start[:, None], end[:, None], share)
    return torch.where(angle.sin() > 1e-4, turned * length, straight)
