"""What several ops share: checks of arguments, memory layouts, and the state of differentiation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._layout import dense, dense_like, is_channels_last, outer_channels_inner
from . import _backends

__all__ = [
    "TYPE_NUMBER",
    "accumulation",
    "address",
    "apply",
    "check_float",
    "check_like",
    "dense",
    "dense_like",
    "forward_mode",
    "is_channels_last",
    "needs_grad",
    "outer_channels_inner",
    "output",
]

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


def check_like(argument: str, x: object, name: str, like: Tensor) -> None:
    """Refuses what is not a tensor of `like`'s shape, dtype and device; `name` is `like`'s."""
    if (
        isinstance(x, Tensor)
        and x.dtype is like.dtype
        and x.shape == like.shape
        and x.device == like.device
    ):
        return
    check_float(argument, x)
    assert isinstance(x, Tensor)
    if x.shape != like.shape:
        raise ValueError(
            f"{argument} must have the shape of {name}, {tuple(like.shape)}, got {tuple(x.shape)}"
        )
    if x.device != like.device:
        raise ValueError(f"{argument} must be on {like.device} like {name}, got {x.device}")
    if x.dtype != like.dtype:
        raise TypeError(f"{argument} must have the dtype of {name}, {like.dtype}, got {x.dtype}")


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are accumulated and returned in: float32 for half types."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def address(x: Tensor | None) -> int | None:
    """The pointer that a kernel takes."""
    return None if x is None else x.data_ptr()


_LARGE = 2 << 20


def output(x: Tensor | None) -> int | None:
    """The pointer to new memory that a kernel writes all of. The system gives that to a CPU far sooner
    in huge pages (csrc/cpu/fresh.cpp)."""
    if x is None:
        return None
    place = x.data_ptr()
    if x.nbytes >= _LARGE and x.device.type == "cpu":
        _backends.native("_cpu").large_output(place, x.nbytes)
    return place


def under_autocast(device: torch.device) -> bool:
    """Whether autocast is on for tensors of `device`."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def forward_mode() -> bool:
    """Whether forward-mode differentiation is going on. Kernels have no tangents: then the
    reference serves."""
    return forward_ad._current_level >= 0


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to record a call with these inputs."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, without the inspection of its signature that torch repeats for
    functorch's sake."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]
