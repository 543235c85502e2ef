"""Gradient penalties: products of samples, samples times a number each, a penalty's gradient, points between samples.

A penalty's gradient by a sample g is f(|g|) g: a pass for the squared norms, in parts, and one for the results, whose
programs add the parts of their samples, so that nothing else runs between the two.

Floor, n elements of s bytes: products 2 n s (n s of g with itself), scaling 2 n s, a penalty's gradient 3 n s, points
3 n s, over the copy bandwidth; less where g is still in the L2 cache when it is read again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import dense, in_rows
from .bias_act import float64_bits
from .elementary import float_from_bits, to_storage
from .random import philox_words, uniform_from_words
from .rows import Rows, add_parts, new_sums, plan_rows, zero_sums

SHAPES = ("two-sided", "one-sided", "half")
ONE_SIDED, HALF, GIVEN = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)

_numbers = triton.jit(do_not_specialize=("steps", "scale", "stream", "sample_offset"))


@_numbers
def products_kernel(
    a, b, sums, a_stride, b_stride, rows, columns, parts, steps,
    WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """b None: of a with itself."""
    dtype: tl.constexpr = sums.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    total = tl.zeros((R, C), dtype)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        v = tl.load(a + row * a_stride + column, mask=inside, other=0.0).to(dtype)
        if b is None:
            total += v * v
        else:
            total += v * tl.load(b + row * b_stride + column, mask=inside, other=0.0).to(dtype)
        column += C
    tl.store(sums + row * parts + part, tl.sum(total, 1, keep_dims=True), mask=row < rows)


@_numbers
def scale_kernel(
    g, factors, out, norms, values, g_stride, rows, columns, parts, steps, scale: tl.int64,
    SHAPE: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """factors: a number a sample (SHAPE GIVEN), else the parts of the squared norms, of which factors are made."""
    storage: tl.constexpr = g.dtype.element_ty
    dtype: tl.constexpr = factors.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    known = row < rows
    if SHAPE == GIVEN:
        factor = tl.load(factors + row, mask=known, other=0.0)
    else:
        squared = tl.zeros((R, 1), dtype)
        for k in range(parts):
            squared += tl.load(factors + row * parts + k, mask=known, other=0.0)
        norm = tl.sqrt(squared) if dtype == tl.float64 else tl.sqrt_rn(squared)
        if SHAPE == HALF:
            factor = tl.full(norm.shape, 1.0, dtype)
            value = 0.5 * squared
        else:
            factor = 2.0 - 2.0 / tl.where(norm == 0.0, 1.0, norm)
            apart = norm - 1.0
            if SHAPE == ONE_SIDED:
                factor = tl.where(factor < 0.0, 0.0, factor)
                apart = tl.where(apart < 0.0, 0.0, apart)
            value = apart * apart
        factor *= float_from_bits(scale, dtype)
        tl.store(norms + row, norm, mask=known & (part == 0))
        tl.store(values + row, value, mask=known & (part == 0))
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    for _ in range(steps):
        inside = known & (column < columns)
        v = tl.load(g + row * g_stride + column, mask=inside, other=0.0).to(dtype)
        tl.store(out + row * columns + column, to_storage(v * factor, storage), mask=inside)
        column += C


@_numbers
def between_kernel(
    fake, real, seeds, out, fake_stride, real_stride, rows, columns, parts, steps, stream, sample_offset,
    PER_SAMPLE: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = out.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    first = row.to(tl.int64) * 0
    if PER_SAMPLE:
        seed = tl.load(seeds + row, mask=row < rows, other=0)
        w, _, _, _ = philox_words(seed, first, 0, stream)
    else:
        w, _, _, _ = philox_words(tl.load(seeds), first, row + sample_offset, stream)
    # The numbers of `random_uniform`, which are rounded down in each type.
    if dtype == tl.float64:
        share = (w.to(tl.int64).to(tl.float64) + 0.5) * 2.3283064365386962890625e-10
    else:
        share = uniform_from_words(w)
        if storage != tl.float32:
            bits = share.to(tl.int32, bitcast=True)
            kept = bits & (-0x10000 if storage == tl.bfloat16 else -0x2000)
            rounded = kept.to(tl.float32, bitcast=True)
            if storage == tl.float16:  # below 2^-14 they are 2^-24 apart
                low = tl.floor(share * 16777216.0) * 5.9604644775390625e-8
                rounded = tl.where(share < 6.103515625e-5, low, rounded)
            share = rounded
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        a = tl.load(fake + row * fake_stride + column, mask=inside, other=0.0).to(dtype)
        b = tl.load(real + row * real_stride + column, mask=inside, other=0.0).to(dtype)
        # From the nearer end, so that both ends are met.
        point = tl.where(share < 0.5, a + share * (b - a), b - (1.0 - share) * (b - a))
        tl.store(out + row * columns + column, to_storage(point, storage), mask=inside)
        column += C


def _strides(*tensors: Tensor) -> list[int]:
    """From a sample to the next; of one sample it is anything."""
    return [t.stride(0) if t.size(0) > 1 else t.numel() for t in tensors]


def _products(a: Tensor, b: Tensor | None, plan: Rows) -> Tensor:
    """In parts."""
    sums = new_sums(a, plan)
    products_kernel[plan.grid](a, b, sums, *_strides(a, a if b is None else b), *plan)
    return sums


def row_products(a: Tensor, b: Tensor | None) -> Tensor:
    """(N,): the sum of a b over each sample, of a a if b is None."""
    if a.numel() == 0:
        return zero_sums(a)
    a = dense(a)
    if b is not None:
        (b,) = in_rows(a, b)
    with torch.cuda.device_of(a):
        return add_parts(_products(a, b, plan_rows(a)))


def scale_rows(g: Tensor, factors: Tensor) -> Tensor:
    """g times the number of each sample, laid out as g if that is dense."""
    g = dense(g)
    out = torch.empty_like(g)
    if g.numel():
        plan = plan_rows(g)
        with torch.cuda.device_of(g):
            scale_kernel[plan.grid](
                g, factors.contiguous(), out, None, None, *_strides(g), *plan[:4], 0, GIVEN, *plan[4:]
            )  # fmt: skip
    return out


def penalty_gradient(g: Tensor, shape: str, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The penalty, its derivative by g and the norms, for a g that is not empty."""
    g = dense(g)
    plan = plan_rows(g)
    slope = torch.empty_like(g)
    with torch.cuda.device_of(g):
        sums = _products(g, None, plan)
        norms, values = sums.new_empty(plan.rows), sums.new_empty(plan.rows)
        scale_kernel[plan.grid](
            g, sums, slope, norms, values, *_strides(g), *plan[:4], float64_bits(weight / plan.rows),
            SHAPES.index(shape), *plan[4:]
        )  # fmt: skip
    return weight * values.mean(), slope, norms


def points_between(
    fake: Tensor, real: Tensor, seed: Tensor, stream: int, sample_offset: int
) -> Tensor:
    """fake + u (real - fake) with one uniform number u a sample; laid out as `dense(real)`."""
    real = dense(real)
    out = torch.empty_like(real)
    if real.numel():
        (fake,) = in_rows(real, fake)
        plan = plan_rows(real)
        with torch.cuda.device_of(real):
            between_kernel[plan.grid](
                fake, real, seed.contiguous(), out, *_strides(fake, real), *plan[:4], stream, sample_offset,
                seed.dim() > 0, *plan[4:]
            )  # fmt: skip
    return out
