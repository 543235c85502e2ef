"""What several ops share: checks of arguments, memory layouts, and the state of differentiation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

# The numbers that csrc/cpu/types.h and csrc/cuda give the element types.
TYPE_NUMBER = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def check_float(argument: str, x: object) -> None:
    """Refuses what is not a tensor of float32, float64, bfloat16 or float16."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(x).__name__}")
    if x.dtype not in TYPE_NUMBER:
        raise TypeError(
            f"{argument} must be float32, float64, bfloat16 or float16, got {str(x.dtype).removeprefix('torch.')}"
        )


def check_name(argument: str, name: object, known: Iterable[str]) -> None:
    """Refuses a name that is not known, and suggests the nearest one."""
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}{hint}")


def forward_mode() -> bool:
    """Whether forward-mode differentiation is going on. Kernels have no tangents: then the reference serves."""
    return forward_ad._current_level >= 0


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to record a call with these inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def is_channels_last(x: Tensor) -> bool:
    """From the strides: inside `torch.func.vmap` a tensor does not answer for memory formats."""
    if x.dim() not in (4, 5):
        return False
    expected = 1
    for k in (1, *range(x.dim() - 1, 1, -1), 0):
        if x.size(k) != 1 and x.stride(k) != expected:
            return False
        expected *= x.size(k)
    return True


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels-last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_like(x: Tensor, like: Tensor) -> Tensor:
    """x itself if it lies in memory as `like` does, else a copy that does."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def outer_channels_inner(x: Tensor) -> tuple[int, int, int]:
    """A dense (N, C, ...) tensor as memory sees it; channels-last and (N, C) tensors have inner = 1."""
    channels = x.size(1)
    if x.is_contiguous() and x.dim() > 2:
        inner = x[0, 0].numel() if x.numel() else 0
        return x.size(0), channels, inner
    outer = x.numel() // channels if channels else 0
    return outer, channels, 1
