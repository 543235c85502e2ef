"""Crops of the two photographs that scikit-learn ships."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pyfastgan.data.datasets import ImageData

STRIDE = 16
# Columns from here on are the test split's: no pixel of a test crop is in a training crop.
BOUNDARY = 480
SIZES = (8, 128)
NAMES = ("china", "flower")


def load_photos(*, size: int = 32, split: str = "all") -> ImageData:
    """Square crops of the photographs, 427 x 640 pixels each, at every 16th row and column.

    Args:
        size: Pixels a side, 8 to 128. The crops are cut at that size, not resized.
        split: "train" (crops from the left 480 columns), "test" (from the right 160) or "all"
            (these, and those across the line).

    Returns:
        Images (N, 3, size, size), labelled with their photograph: 0 a temple in China, 1 a flower.

    Raises:
        ValueError: A size out of range, an unknown split.
        TypeError: A size that is no int.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size must be an int, got {size!r}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size must be {SIZES[0]} to {SIZES[1]}, got {size}")
    ranges = {"all": (0, 640), "train": (0, BOUNDARY), "test": (BOUNDARY, 640)}
    if split not in ranges:
        raise ValueError(f"split must be one of {', '.join(ranges)}, got {split!r}")
    first, last = ranges[split]
    part = _originals()[..., first:last]
    crops = part.unfold(2, size, STRIDE).unfold(3, size, STRIDE)
    images = crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()
    labels = torch.arange(2).repeat_interleave(len(images) // 2)
    return ImageData(images, labels, classes=NAMES)


@functools.cache
def _originals() -> Tensor:
    """uint8 (2, 3, 427, 640)."""
    from sklearn import datasets

    pictures = [datasets.load_sample_image(f"{name}.jpg") for name in NAMES]
    return torch.stack([torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in pictures])
