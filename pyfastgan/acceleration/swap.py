"""What a library's file offers, and why a part is left alone whatever its library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def _nothing(part: Any) -> None:
    return None


def _nobody(part: Any) -> Iterable[tuple[str, nn.Module, str]]:
    return ()


class Swap(NamedTuple):
    """How a class is served.

    fast      a subclass of it with the same name, attributes and state
    op        what serves it, for the report
    refuses   why an instance cannot be served, None if it can, "" if there is nothing to serve
    apart     children that are not served with it: name, module and reason
    """

    fast: type
    op: str
    refuses: Callable[[Any], str | None] = _nothing
    apart: Callable[[Any], Iterable[tuple[str, nn.Module, str]]] = _nobody


class Library(NamedTuple):
    """What `accelerate` knows of a library.

    swaps   by the class that is served, which has to be the very class of a part
    named   classes whose instances are named in the report where nothing serves them
    silent  classes among these that only hold others
    """

    swaps: dict[type, Swap]
    named: tuple[type, ...]
    silent: tuple[type, ...] = ()


_SERVED = (torch.float32, torch.float64)


def serves(*tensors: Tensor) -> bool:
    """Whether a call is computed here: float32 or float64 outside autocast. Everything else is left to the library's
    own arithmetic, whose rounding is part of what it computes; so are shapes without values and `torch.jit.trace`,
    whose shapes are tensors."""
    first = tensors[0]
    for t in tensors:
        if t.dtype not in _SERVED or t.dtype != first.dtype:
            return False
    if first.is_meta or torch._C._get_tracing_state() is not None:
        return False
    return not torch.is_autocast_enabled(first.device.type)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches calls of this module, which then have to take place."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def refused(part: Any) -> str | None:
    """Why no part of this kind can be served, None if there is no such reason."""
    if "forward" in vars(part):
        return "its forward was replaced on the instance"
    if isinstance(part, nn.Module):
        tensors: Sequence[Tensor] = [*part.parameters(), *part.buffers()]
        for t in tensors:
            if t.is_floating_point() and t.dtype not in _SERVED:
                return f"it holds {str(t.dtype).removeprefix('torch.')}"
    return None
