"""How a tensor lies in memory, as the launchers of these kernels see it. Nothing here needs Triton."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return False


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels-last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """x itself if it lies in memory as `like` does, else a copy that does."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def outer_channels_inner(x: Tensor) -> tuple[int, int, int]:
    """A dense (N, C, ...) tensor as memory sees it; channels-last and (N, C) tensors have inner = 1."""
    outer, channels, *inner = x.shape
    if inner and x.is_contiguous():
        return outer, channels, math.prod(inner)
    return outer * math.prod(inner), channels, 1
