"""Rules of a plan for arithmetic between values, changes of shape and sums.

A rule takes the builder, the name of the place and what the critic's code gave the function or
method, appends layers and returns the value that stands for the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfastgan.gan.critic_plan import Unsupported
from pyfastgan.gan.linearised_maps import Add, Broadcast, Concatenate, Multiply, Reshape, Scale, Sum
from pyfastgan.gan.plan_builder import Builder, Value


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _lift(b: Builder, name: str, x: Value, like: Value) -> Value:
    """A weight as a value of every sample, if it is one."""
    if x.source is None:
        return x
    dims = like.meta.dim()
    shape = (1,) * (dims - x.meta.dim()) + tuple(x.meta.shape)
    if len(shape) != dims or shape[0] != 1:
        raise Unsupported("has a weight for each sample")
    meta = torch.empty(like.meta.size(0), *shape[1:], dtype=x.meta.dtype, device="meta")
    return b.emit(Broadcast, name, (like,), meta, b.source(x.source), shape[1:])


def _pair(b: Builder, name: str, x: Value, y: Value) -> tuple[Value, Value, tuple[Any, Any]]:
    x, y = _lift(b, name, x, y), _lift(b, name, y, x)
    shapes = b.sample_shape(x.meta), b.sample_shape(y.meta)
    if len(shapes[0]) != len(shapes[1]):
        raise Unsupported("combines tensors of different dimensions")
    return x, y, shapes


def _scale(b: Builder, name: str, x: Any, factor: float, shift: float = 0.0) -> Value:
    if factor == 1 and shift == 0:
        return x
    return b.emit(Scale, name, (x,), x.meta * factor, float(factor), float(shift))


def _add(b: Builder, name: str, x: Any, y: Any, *, alpha: float = 1.0) -> Value:
    if _number(y):
        return _scale(b, name, x, 1.0, alpha * y)
    if _number(x):
        return _scale(b, name, y, alpha, x)
    x, y, shapes = _pair(b, name, x, y)
    return b.emit(Add, name, (x, y), torch.add(x.meta, y.meta), shapes, float(alpha))


def _sub(b: Builder, name: str, x: Any, y: Any, *, alpha: float = 1.0) -> Value:
    return _add(b, name, x, y, alpha=-alpha)


def _mul(b: Builder, name: str, x: Any, y: Any) -> Value:
    if _number(y):
        return _scale(b, name, x, y)
    if _number(x):
        return _scale(b, name, y, x)
    x, y, shapes = _pair(b, name, x, y)
    return b.emit(Multiply, name, (x, y), x.meta * y.meta, shapes)


def _div(b: Builder, name: str, x: Any, y: Any) -> Value:
    if not _number(y):
        raise Unsupported("divides by a tensor")
    return _scale(b, name, x, 1.0 / y)


def _neg(b: Builder, name: str, x: Value) -> Value:
    return _scale(b, name, x, -1.0)


def _identity(b: Builder, name: str, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _reshape_to(b: Builder, name: str, x: Value, meta: Tensor) -> Value:
    before, after = b.sample_shape(x.meta), b.sample_shape(meta)
    return x if before == after else b.emit(Reshape, name, (x,), meta, before, after)


def _reshape(b: Builder, name: str, x: Value, *shape: Any) -> Value:
    return _reshape_to(b, name, x, x.meta.reshape(*shape))


def flatten(b: Builder, name: str, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return _reshape_to(b, name, x, x.meta.flatten(start_dim, end_dim))


def _squeeze(b: Builder, name: str, x: Value, *dims: Any) -> Value:
    return _reshape_to(b, name, x, x.meta.squeeze(*dims))


def _unsqueeze(b: Builder, name: str, x: Value, dim: int) -> Value:
    return _reshape_to(b, name, x, x.meta.unsqueeze(dim))


def _item(b: Builder, name: str, x: Value, index: Any) -> Value:
    """x[:, 0] of one channel, x[:, :, None, None] and the like: no more than another shape."""
    parts = index if isinstance(index, tuple) else (index,)
    meta, dim = x.meta, 0
    for part in parts:
        if part is None:
            meta, dim = meta.unsqueeze(dim), dim + 1
        elif part == slice(None):
            dim += 1
        elif part is Ellipsis:
            dim = meta.dim() - (len(parts) - parts.index(part) - 1)
        elif part in (0, -1) and dim > 0 and meta.size(dim) == 1:
            meta = meta.squeeze(dim)
        else:
            raise Unsupported("takes a part of a tensor")
    return _reshape_to(b, name, x, meta)


def _reduce(mean: bool) -> Callable[..., Value]:
    def rule(
        b: Builder,
        name: str,
        x: Value,
        dim: Any = None,
        keepdim: bool = False,
        *,
        dtype: Any = None,
        **other: Any,
    ) -> Value:
        dim = other.get("axis", dim)
        if dim is None or dtype is not None:
            raise Unsupported("mixes samples" if dtype is None else "changes the dtype")
        dims = sorted(d % x.meta.dim() for d in ([dim] if isinstance(dim, int) else dim))
        if 0 in dims:
            raise Unsupported("mixes samples")
        meta = x.meta.sum(dims, keepdim)
        return b.emit(
            Sum, name, (x,), meta, b.sample_shape(x.meta), tuple(dims), bool(keepdim), mean
        )

    return rule


def _cat(b: Builder, name: str, tensors: Any, dim: int = 0, **other: Any) -> Value:
    dim = other.get("axis", dim)
    first = next(t for t in tensors if t.number is not None)
    tensors = tuple(_lift(b, name, t, first) for t in tensors)
    dim %= first.meta.dim()
    if dim == 0:
        raise Unsupported("mixes samples")
    shapes = tuple(b.sample_shape(t.meta) for t in tensors)
    return b.emit(
        Concatenate, name, tensors, torch.cat([t.meta for t in tensors], dim), shapes, dim
    )


def check_in_place(b: Builder, x: Value) -> None:
    """From here on the name of the input means the output; other names of it must not exist."""
    if x.number in b.viewed or x.number in (0, 1):
        raise Unsupported("changes a tensor in place that is seen elsewhere")


def _in_place(rule: Callable[..., Value]) -> Callable[..., Value]:
    def changed(b: Builder, name: str, x: Value, y: Any) -> Value:
        check_in_place(b, x)
        found = rule(b, name, x, y)
        x.number = found.number
        return found

    return changed


# By the name of the function or method.
ARITHMETIC: dict[str, Callable[..., Value]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "truediv": _div,
    "neg": _neg,
    "iadd": _in_place(_add),
    "isub": _in_place(_sub),
    "imul": _in_place(_mul),
    "itruediv": _in_place(_div),
    "contiguous": _identity,
    "reshape": _reshape,
    "flatten": flatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "getitem": _item,
    "sum": _reduce(mean=False),
    "mean": _reduce(mean=True),
    "cat": _cat,
}
