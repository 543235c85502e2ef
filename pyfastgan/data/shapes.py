"""Shapes with known factors, drawn by code: what disentanglement is measured on (after dSprites, Matthey et
al. 2017, but smaller, and with no factor that some shapes do not show)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from pyfastgan.data.datasets import ImageData

# The factors of variation, and how many values each has.
FACTORS = {"shape": 3, "scale": 4, "orientation": 8, "x": 8, "y": 8}
NAMES = ("square", "ellipse", "triangle")
TEST_COUNT = 1024
_SPLIT_SEED = 6144


def load_shapes(*, size: int = 32, split: str = "all") -> ImageData:
    """White shapes on black, one image for each combination of factors.

    Args:
        size: Pixels a side, at least 16.
        split: "all" (6,144), "train" (5,120) or "test" (1,024); the split is one fixed permutation.

    Returns:
        Images (N, 1, size, size), labelled with their shape: square, ellipse, triangle. Row i has the
        factors of row i of `shape_factors(split)`.

    Raises:
        ValueError: A size below 16, an unknown split.
        TypeError: A size that is no int.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size must be an int, got {size!r}")
    if size < 16:
        raise ValueError(f"size must be at least 16, got {size}")
    part = _part(split)
    return ImageData(_drawn(size)[part], _factors()[part, 0], classes=NAMES)


def shape_factors(split: str = "all") -> Tensor:
    """The factors of the images of `load_shapes`, int64 (N, 5), in the order of `FACTORS`.

    Raises:
        ValueError: An unknown split.
    """
    return _factors()[_part(split)]


def _part(split: str) -> Tensor:
    count = math.prod(FACTORS.values())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    parts = {
        "all": torch.arange(count),
        "train": order[TEST_COUNT:],
        "test": order[:TEST_COUNT],
    }
    if split not in parts:
        raise ValueError(f"split must be one of {', '.join(parts)}, got {split!r}")
    return parts[split]


def _factors() -> Tensor:
    return torch.cartesian_prod(*(torch.arange(count) for count in FACTORS.values()))


@functools.lru_cache(2)
def _drawn(size: int) -> Tensor:
    """uint8 (N, 1, size, size); a pixel at an edge is as bright as the share of it that is covered."""
    factors = _factors()
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    images = []
    # An orientation is a part of a quarter turn, which brings only the square back to itself.
    for part in factors.split(512):
        shape, scale, orientation, x, y = part.float().T[:, :, None, None]
        radius = 0.2 + 0.15 * scale / (FACTORS["scale"] - 1)
        angle = orientation * (math.pi / 2 / FACTORS["orientation"])
        right = axis - (x / (FACTORS["x"] - 1) - 0.5)
        down = axis[:, None] - (y / (FACTORS["y"] - 1) - 0.5)
        u = (right * angle.cos() + down * angle.sin()) / radius
        v = (down * angle.cos() - right * angle.sin()) / radius
        # Distances from the edge in radii, negative inside.
        square = torch.maximum(u.abs(), v.abs()) - 0.8
        ellipse = ((u.square() + (2 * v).square()).sqrt() - 1) / 2
        triangle = torch.maximum(v - 0.5, 0.8660254 * u.abs() - 0.5 * v - 0.5)
        distance = torch.where(shape == 0, square, torch.where(shape == 1, ellipse, triangle))
        inside = (0.5 - distance * radius * (size / 2)).clamp(0, 1)
        images.append((inside * 255).round().to(torch.uint8))
    return torch.cat(images)[:, None]
