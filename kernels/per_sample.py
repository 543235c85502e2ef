"""bernoulli_nll and gaussian_nll, and their backward passes: one pass over the tensors each.

Floor, n elements of s bytes in k tensors: forward k n s, backward k n s and n s for each gradient that is wanted, over
the copy bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import log1p_unit, logistic, to_storage
from .rows import add_parts, like, new_sums, plan_rows, zero_sums

BERNOULLI, GAUSSIAN = tl.constexpr(0), tl.constexpr(1)

_steps = triton.jit(do_not_specialize=("steps",))


@_steps
def loss_kernel(
    x, first, second, sums, rows, columns, parts, steps,
    KIND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = sums.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    total = tl.zeros((R, C), dtype)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        v = tl.load(x + at, mask=inside, other=0.0).to(dtype)
        a = tl.load(first + at, mask=inside, other=0.0).to(dtype)
        if KIND == BERNOULLI:
            loss = tl.where(a < 0.0, 0.0, a) - v * a + log1p_unit(tl.exp(-tl.abs(a)))
        else:
            b = tl.load(second + at, mask=inside, other=0.0).to(dtype)
            loss = 0.5 * (1.83787706640934548356 + b + (v - a) * (v - a) * tl.exp(-b))
        total += tl.where(inside, loss, 0.0)
        column += C
    tl.store(sums + row * parts + part, tl.sum(total, 1, keep_dims=True), mask=row < rows)


@_steps
def slopes_kernel(
    dnll, x, first, second, of_x, of_first, of_second, rows, columns, parts, steps,
    KIND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = dnll.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    g = tl.load(dnll + row, mask=row < rows, other=0.0)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        v = tl.load(x + at, mask=inside, other=0.0).to(dtype)
        a = tl.load(first + at, mask=inside, other=0.0).to(dtype)
        if KIND == BERNOULLI:
            if of_x is not None:
                tl.store(of_x + at, to_storage(-g * a, storage), mask=inside)
            if of_first is not None:
                tl.store(of_first + at, to_storage(g * (logistic(a) - v), storage), mask=inside)
        else:
            b = tl.load(second + at, mask=inside, other=0.0).to(dtype)
            scaled = (v - a) * tl.exp(-b)
            if of_x is not None:
                tl.store(of_x + at, to_storage(g * scaled, storage), mask=inside)
            if of_first is not None:
                tl.store(of_first + at, to_storage(-g * scaled, storage), mask=inside)
            if of_second is not None:
                slope = g * (0.5 * (1.0 - (v - a) * scaled))
                tl.store(of_second + at, to_storage(slope, storage), mask=inside)
        column += C


def _loss(kind: tl.constexpr, *tensors: Tensor) -> Tensor:
    tensors = tuple(t.contiguous() for t in tensors)
    x = tensors[0]
    if x.numel() == 0:
        return zero_sums(x)
    plan = plan_rows(x)
    sums = new_sums(x, plan)
    three = (*tensors, None)[:3]
    with torch.cuda.device_of(x):
        loss_kernel[plan.grid](*three, sums, *plan[:4], kind, *plan[4:])
    return add_parts(sums)


def _slopes(kind: tl.constexpr, dnll: Tensor, wanted: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    tensors = tuple(t.contiguous() for t in tensors)
    x = tensors[0]
    out = tuple(like(x) if wanted >> k & 1 else dnll.new_empty(0) for k in range(len(tensors)))
    if x.numel() == 0 or not wanted:
        return out
    plan = plan_rows(x)
    three = (*tensors, None)[:3]
    asked = [t if wanted >> k & 1 else None for k, t in enumerate(out)]
    with torch.cuda.device_of(x):
        slopes_kernel[plan.grid](
            dnll.contiguous(), *three, *(*asked, None)[:3], *plan[:4], kind, *plan[4:]
        )
    return out


def bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """nll (N,) in nats."""
    return _loss(BERNOULLI, x, logits)


def bernoulli_nll_backward(
    dnll: Tensor, x: Tensor, logits: Tensor, wanted: int
) -> tuple[Tensor, ...]:
    """Gradients to x and logits; bit k of `wanted` asks for the k-th."""
    return _slopes(BERNOULLI, dnll, wanted, x, logits)


def gaussian_nll(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """nll (N,) in nats."""
    return _loss(GAUSSIAN, x, mean, logvar)


def gaussian_nll_backward(
    dnll: Tensor, x: Tensor, mean: Tensor, logvar: Tensor, wanted: int
) -> tuple[Tensor, ...]:
    """Gradients to x, mean and logvar; bit k of `wanted` asks for the k-th."""
    return _slopes(GAUSSIAN, dnll, wanted, x, mean, logvar)
