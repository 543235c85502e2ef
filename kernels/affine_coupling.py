"""affine_coupling with its log-determinant, and its backward pass, by the formulas of csrc/math/affine_coupling.h.

The inverse of y = x S + t is (y - t) / S: the other order of the two steps with 1 / S and -t.

Floor, n elements of s bytes: forward 4 n s, backward 5 n s, over the copy bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import dense, in_rows
from .bias_act import float64_bits
from .elementary import arctangent, float_from_bits, hyperbolic_tangent, log1p_unit, to_storage
from .rows import add_parts, new_sums, plan_rows, zero_sums

# The numbers of csrc/math/affine_coupling.h.
SCALES = ("exp", "tanh", "sigmoid", "softclamp", "clamped_tanh")
EXP, TANH, SIGMOID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
CLAMPED_TANH = tl.constexpr(4)

_numbers = triton.jit(do_not_specialize=("steps", "clamp"))


@triton.jit
def scale_at(raw, clamp, SCALE: tl.constexpr, INVERSE: tl.constexpr):
    """S or 1 / S, its logarithm, and the derivative of that by raw."""
    if SCALE == SIGMOID:
        a = raw + 2.0
        e = tl.exp(-tl.abs(a))
        below = 1.0 + e
        above = tl.where(a < 0.0, e, 1.0)
        log = tl.where(a < 0.0, a, 0.0) - log1p_unit(e)
        slope = tl.where(a < 0.0, 1.0, e) / below
        factor = below / above if INVERSE else above / below
        if INVERSE:
            log, slope = -log, -slope
    else:
        log, slope = raw, tl.full(raw.shape, 1.0, raw.dtype)
        if SCALE == TANH:
            log = hyperbolic_tangent(raw)
            slope = 1.0 - log * log
        elif SCALE == CLAMPED_TANH:
            unit = hyperbolic_tangent(raw)
            log = clamp * unit
            slope = clamp * (1.0 - unit * unit)
        elif SCALE != EXP:
            u = raw / clamp
            log = clamp * 0.636 * arctangent(u)
            slope = 0.636 / (1.0 + u * u)
        if INVERSE:
            log, slope = -log, -slope
        factor = tl.exp(log)
    return factor, log, slope


@_numbers
def forward_kernel(
    x, raw, shift, y, sums, x_stride, raw_stride, shift_stride, rows, columns, parts, steps, clamp: tl.int64,
    SCALE: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, WIDE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = sums.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    limit = float_from_bits(clamp, dtype)
    total = tl.zeros((R, C), dtype)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        v = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(dtype)
        s = tl.load(raw + row * raw_stride + column, mask=inside, other=0.0).to(dtype)
        t = tl.load(shift + row * shift_stride + column, mask=inside, other=0.0).to(dtype)
        factor, log, _ = scale_at(s, limit, SCALE, INVERSE)
        if INVERSE:
            t = -t
        v = (v + t) * factor if FIRST else v * factor + t
        tl.store(y + row * columns + column, to_storage(v, storage), mask=inside)
        total += tl.where(inside, log, 0.0)
        column += C
    tl.store(sums + row * parts + part, tl.sum(total, 1, keep_dims=True), mask=row < rows)


@_numbers
def backward_kernel(
    dy, dlogdet, kept, raw, dx, draw, dy_stride, kept_stride, raw_stride,
    rows, columns, parts, steps, clamp: tl.int64,
    SCALE: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, WIDE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = kept.dtype.element_ty
    dtype: tl.constexpr = dlogdet.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    limit = float_from_bits(clamp, dtype)
    of_log = tl.load(dlogdet + row, mask=row < rows, other=0.0)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        d = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(dtype)
        v = tl.load(kept + row * kept_stride + column, mask=inside, other=0.0).to(dtype)
        s = tl.load(raw + row * raw_stride + column, mask=inside, other=0.0).to(dtype)
        factor, _, slope = scale_at(s, limit, SCALE, INVERSE)
        g = d * factor
        at = row * columns + column
        tl.store(dx + at, to_storage(g, storage), mask=inside)
        d = d if FIRST else g
        tl.store(draw + at, to_storage((d * v + of_log) * slope, storage), mask=inside)
        column += C


def _strides(*tensors: Tensor) -> list[int]:
    """From a sample to the next; of one sample it is anything."""
    return [t.stride(0) if t.size(0) > 1 else t.numel() for t in tensors]


def affine_coupling(
    x: Tensor,
    raw: Tensor,
    shift: Tensor,
    scale: str,
    clamp: float,
    shift_first: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """y, laid out as x if that is dense, else contiguous; and logdet (N,)."""
    y = torch.empty_like(dense(x))
    if x.numel() == 0:
        return y, zero_sums(x)
    x, raw, shift = in_rows(y, x, raw, shift)
    plan = plan_rows(y)
    sums = new_sums(y, plan)
    with torch.cuda.device_of(x):
        forward_kernel[plan.grid](
            x, raw, shift, y, sums, *_strides(x, raw, shift), *plan[:4], float64_bits(clamp), SCALES.index(scale),
            shift_first != inverse, inverse, *plan[4:]
        )  # fmt: skip
    return y, add_parts(sums)


def affine_coupling_backward(
    dy: Tensor,
    dlogdet: Tensor,
    kept: Tensor,
    raw: Tensor,
    scale: str,
    clamp: float,
    shift_first: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to x and raw, from the output if the shift comes first, else from x."""
    like = dense(kept)
    dx, draw = torch.empty_like(like), torch.empty_like(like)
    if kept.numel() == 0:
        return dx, draw
    dy, kept, raw = in_rows(dx, dy, kept, raw)
    plan = plan_rows(dx)
    with torch.cuda.device_of(kept):
        backward_kernel[plan.grid](
            dy, dlogdet.contiguous(), kept, raw, dx, draw, *_strides(dy, kept, raw), *plan[:4],
            float64_bits(clamp), SCALES.index(scale), shift_first != inverse, inverse, *plan[4:]
        )  # fmt: skip
    return dx, draw
