"""What several ops share: checks of arguments, memory layouts, and the state of differentiation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.dlpack import from_dlpack

from .._layout import dense, dense_like, is_channels_last, outer_channels_inner
from . import _backends

__all__ = [
    "FEW",
    "TYPE_NUMBER",
    "accumulation",
    "address",
    "apply",
    "check_float",
    "check_like",
    "dense",
    "dense_like",
    "forward_mode",
    "fresh",
    "fresh_like",
    "is_channels_last",
    "needs_grad",
    "outer_channels_inner",
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


# Smaller memory comes from a heap that stays.
_KEPT = 128 << 10

# So many elements of any type do. What makes no more than that may ask torch for memory, which answers sooner.
FEW = 2**14

# DLPack's code times 256, and the bits.
_DLPACK = {
    torch.float32: 0x220,
    torch.float64: 0x240,
    torch.bfloat16: 0x410,
    torch.float16: 0x210,
    torch.int64: 0x40,
    torch.uint8: 0x108,
}


@functools.cache
def _output_memory() -> Callable[[tuple[int, ...], tuple[int, ...], int], object] | None:
    return _backends.cpu_kernel("output")


def fresh(
    like: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    *,
    channels_last: bool = False,
) -> Tensor:
    """A new tensor on `like`'s device, of its dtype if none is given, that a kernel writes all of.

    Large ones lie on the CPU in memory that is kept from call to call (csrc/cpu/outputs.h). Fake
    tensors and the like make their own.
    """
    dtype = dtype or like.dtype
    # The size is asked last: of a fake tensor's, a comparison would bind what is traced to it.
    large = type(like) is Tensor and like.is_cpu and math.prod(shape) * dtype.itemsize >= _KEPT
    if large and (memory := _output_memory()):
        strides = _channels_last_strides(*shape) if channels_last else ()
        return from_dlpack(memory(tuple(shape), strides, _DLPACK[dtype]))
    if channels_last:
        form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return torch.empty(shape, dtype=dtype, device=like.device, memory_format=form)
    return like.new_empty(shape, dtype=dtype)


def _channels_last_strides(samples: int, channels: int, *space: int) -> tuple[int, ...]:
    strides, run = [], channels
    for size in reversed(space):
        strides.append(run)
        run *= size
    return (run, 1, *reversed(strides))


def fresh_like(x: Tensor) -> Tensor:
    """`fresh`, lying in memory as the contiguous or channels-last x does."""
    return fresh(x, x.shape, channels_last=not x.is_contiguous())


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
