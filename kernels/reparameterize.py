"""reparameterize and its backward pass: one pass each, with the noise made in the kernel.

Floor, n elements of s bytes: forward 3 n s, backward 5 n s over the copy bandwidth; a given noise is n s more, and its
gradient too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import to_storage
from .random import normal_tile
from .rows import add_parts, like, new_sums, plan_rows, zero_sums

_numbers = triton.jit(do_not_specialize=("steps", "stream", "sample_offset"))


@triton.jit
def _noise(
    seeds, noise, at, inside, row, column, rows, stream, sample_offset,
    PER_SAMPLE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    if noise is not None:
        e = tl.load(noise + at, mask=inside, other=0.0).to(dtype)
    else:
        block = column // 4 + tl.arange(0, at.shape[1] // 4)[None, :]
        sample = tl.minimum(row, rows - 1)
        e = normal_tile(seeds, sample, block, stream, sample_offset, PER_SAMPLE, dtype)
    return e


@_numbers
def forward_kernel(
    mean, logvar, seeds, noise, z, sums, rows, columns, parts, steps, stream, sample_offset,
    PER_SAMPLE: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = mean.dtype.element_ty
    dtype: tl.constexpr = sums.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    start = (part * steps).to(index) * C
    total = tl.zeros((R, C), dtype)
    for _ in range(steps):
        column = start + tl.arange(0, C)[None, :]
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        m = tl.load(mean + at, mask=inside, other=0.0).to(dtype)
        v = tl.load(logvar + at, mask=inside, other=0.0).to(dtype)
        e = _noise(
            seeds, noise, at, inside, row, start, rows, stream, sample_offset, PER_SAMPLE, dtype
        )
        deviation = tl.exp(0.5 * v)
        tl.store(z + at, to_storage(m + deviation * e, storage), mask=inside)
        kl = deviation * deviation + m * m - 1.0 - v
        total += tl.where(inside, kl, 0.0)
        start += C
    tl.store(sums + row * parts + part, 0.5 * tl.sum(total, 1, keep_dims=True), mask=row < rows)


@_numbers
def backward_kernel(
    dz, dkl, mean, logvar, seeds, noise, dmean, dlogvar, dnoise,
    rows, columns, parts, steps, stream, sample_offset,
    PER_SAMPLE: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = mean.dtype.element_ty
    dtype: tl.constexpr = dkl.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    start = (part * steps).to(index) * C
    g = tl.load(dkl + row, mask=row < rows, other=0.0)
    for _ in range(steps):
        column = start + tl.arange(0, C)[None, :]
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        d = tl.load(dz + at, mask=inside, other=0.0).to(dtype)
        m = tl.load(mean + at, mask=inside, other=0.0).to(dtype)
        v = tl.load(logvar + at, mask=inside, other=0.0).to(dtype)
        e = _noise(
            seeds, noise, at, inside, row, start, rows, stream, sample_offset, PER_SAMPLE, dtype
        )
        deviation = tl.exp(0.5 * v)
        slope = 0.5 * (d * deviation * e + g * (deviation * deviation - 1.0))
        tl.store(dmean + at, to_storage(d + g * m, storage), mask=inside)
        tl.store(dlogvar + at, to_storage(slope, storage), mask=inside)
        if dnoise is not None:
            tl.store(dnoise + at, to_storage(d * deviation, storage), mask=inside)
        start += C


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def reparameterize(
    mean: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    noise: Tensor | None,
    stream: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor]:
    """z, and kl (N,) in nats."""
    z = like(mean)
    if mean.numel() == 0:
        return z, zero_sums(mean)
    plan = plan_rows(mean)
    sums = new_sums(mean, plan)
    each = seed is not None and seed.dim() > 0
    with torch.cuda.device_of(mean):
        forward_kernel[plan.grid](
            *_contiguous(mean, logvar, seed, noise), z, sums, *plan[:4], stream, sample_offset, each, *plan[4:]
        )  # fmt: skip
    return z, add_parts(sums)


def reparameterize_backward(
    dz: Tensor,
    dkl: Tensor,
    mean: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    noise: Tensor | None,
    stream: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to mean, logvar and the noise; empty where that was not given."""
    dmean, dlogvar = like(mean), like(mean)
    dnoise = mean.new_empty(0) if noise is None else like(mean)
    if mean.numel() == 0:
        return dmean, dlogvar, dnoise
    plan = plan_rows(mean)
    each = seed is not None and seed.dim() > 0
    with torch.cuda.device_of(mean):
        backward_kernel[plan.grid](
            *_contiguous(dz, dkl, mean, logvar, seed, noise), dmean, dlogvar, None if noise is None else dnoise,
            *plan[:4], stream, sample_offset, each, *plan[4:]
        )  # fmt: skip
    return dmean, dlogvar, dnoise
