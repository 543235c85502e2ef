"""Results that are made again instead of kept: what a convolution saves of its input.

An input that came out of a norm or an activation is a cheap function of what that op keeps itself, so a
convolution behind it need not keep it for its weight gradient. The op notes how on its result, and
the convolution runs under `forgetting`. A weight that needs no gradient needs nothing of the input
but its shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Bytes below which it is not worth the time of the hooks.
_WORTH = 1 << 22
# How a tensor is made again, and its version then. An attribute of the tensor would be pickled with it.
_notes: Any = WeakTensorKeyDictionary()


def note(y: Tensor, make: Callable[..., Tensor], *given: Any) -> None:
    """Remembers that `make(*given)` computes y, bit for bit. None of `given` may be made of y."""
    if not (_plain() and _large(y)):
        return
    given = tuple(t.detach() if isinstance(t, Tensor) else t for t in given)
    versions = _versions(given)

    def again() -> Tensor:
        if _versions(given) != versions:
            raise RuntimeError(
                "a tensor that a gradient needs was changed in place: "
                "the input, weight or bias of a norm or an activation"
            )
        with torch.no_grad():
            return make(*given)

    _notes[y] = again, y._version


def forgetting(x: Tensor, weight: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which x is not saved for a backward pass, if it has a note and is as it was then."""
    if not (_plain() and _large(x)):
        return contextlib.nullcontext()
    again, version = _notes.get(x, (None, 0))
    if again is None or x._version != version:
        return contextlib.nullcontext()
    if torch._C._autograd._top_saved_tensors_default_hooks(False):
        return contextlib.nullcontext()  # somebody else's hooks want all that is saved
    looked_at = weight.requires_grad
    place, like = x.data_ptr(), (x.shape, x.stride(), x.dtype)

    def pack(t: Tensor) -> Any:
        ours = t.data_ptr() == place and (t.shape, t.stride(), t.dtype) == like
        return again if ours else t

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if looked_at:
            return kept()
        return torch.empty_strided(like[0], like[1], dtype=like[2], device=weight.device)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _large(x: Tensor) -> bool:
    return x.numel() * x.element_size() >= _WORTH


def _plain() -> bool:
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def _versions(given: tuple[Any, ...]) -> list[int]:
    return [t._version for t in given if isinstance(t, Tensor)]
