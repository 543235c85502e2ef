"""Resizing images of bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Images that are resized at once, so that a large set needs little memory beside itself.
_CHUNK = 1024


def check_size(size: int | None) -> None:
    """Raise TypeError or ValueError unless it is a positive int or None."""
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size must be an int, got {size!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")


def to_square(images: Tensor, size: int | None) -> Tensor:
    """The middle square of each image, resized bilinearly (with antialiasing when it shrinks).

    Args:
        images: uint8 (N, C, H, W).
        size: Pixels a side; None leaves the images as they are.

    Returns:
        uint8 (N, C, size, size).
    """
    height, width = images.shape[2:]
    if size is None or height == width == size:
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, :, top : top + side, left : left + side]
    if side == size:
        return images.contiguous()
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for part, target in zip(images.split(_CHUNK), out.split(_CHUNK), strict=True):
        resized = functional.interpolate(
            part.float(), (size, size), mode="bilinear", antialias=size < side
        )
        target.copy_(resized.round_().clamp_(0, 255))
    return out
