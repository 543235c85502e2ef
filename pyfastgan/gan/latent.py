"""Walking in the latent space."""

from __future__ import annotations

import torch
from torch import Tensor


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
