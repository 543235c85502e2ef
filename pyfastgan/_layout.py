"""How a tensor lies in memory, as the ops and the launchers of their kernels see it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """From the strides: inside `torch.func.vmap` a tensor does not answer for memory formats."""
    dims = x.dim()
    if dims != 4 and dims != 5:
        return False
    shape, strides = x.shape, x.stride()  # read once, as each costs as much as the rest
    expected = 1
    for k in (1, 3, 2, 0) if dims == 4 else (1, 4, 3, 2, 0):
        if shape[k] != 1 and strides[k] != expected:
            return False
        expected *= shape[k]
    return True


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels-last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """x itself if it lies in memory as `like` does, else a copy that does."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def gated_alike(feature: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features and what opens them, if anything does, as they lie alike in memory."""
    if gate is None:
        return dense(feature), None
    gate = dense(gate)
    return dense_like(feature, gate), gate


def outer_channels_inner(x: Tensor) -> tuple[int, int, int]:
    """A dense (N, C, ...) tensor as memory sees it; channels-last and (N, C) tensors have inner =
    1."""
    outer, channels, *inner = x.shape
    if inner and x.is_contiguous():
        return outer, channels, math.prod(inner)
    return outer * math.prod(inner), channels, 1


def _samples_apart(x: Tensor) -> bool:
    """Whether each sample lies as in a contiguous tensor; the samples may lie apart."""
    expected = 1
    for k in range(x.dim() - 1, 0, -1):
        if x.size(k) != 1 and x.stride(k) != expected:
            return False
        expected *= x.size(k)
    return True


def in_rows(like: Tensor, *others: Tensor) -> list[Tensor]:
    """The others with the elements of a sample in the order of the dense `like`."""
    if like.is_contiguous():
        return [t if t.is_contiguous() or _samples_apart(t) else t.contiguous() for t in others]
    return [dense_like(t, like) for t in others]
