"""A Glow step around its network: actnorm and 1x1 convolution as one matrix product, the coupling, and both backwards.

A program of the products has a block of pixels with all of their channels, so the matrix is read once and a pixel
once. Halves of tensors are read and written in place, where torch's operations would join them. float32 products are
TF32 where torch's own setting allows that, else three TF32 products; half types are multiplied in float32.

Floor, n elements of s bytes: forward 2 n s and 3 n s before and after the network; backward 3 n s and 5.5 n s.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .affine_coupling import SCALES, scale_at
from .bias_act import PROGRAMS, float64_bits
from .elementary import float_from_bits, to_storage
from .rows import add_parts, new_sums, plan_rows

PIXELS = {torch.float64: 16}  # of a block, for 128 threads
USUAL_PIXELS = 32

_numbers = triton.jit(do_not_specialize=("steps", "clamp"))


@triton.jit
def _square(matrix, channels, c, TURNED: tl.constexpr):
    """(C, C), filled up with zeros; TURNED: the transpose."""
    at = c[None, :] * channels + c[:, None] if TURNED else c[:, None] * channels + c[None, :]
    held = (c < channels)[:, None] & (c < channels)[None, :]
    return tl.load(matrix + at, mask=held, other=0.0)


@triton.jit
def mix_kernel(
    x, matrix, offset, z, channels, pixels, PRECISION: tl.constexpr, C: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = matrix.dtype.element_ty
    tiles = tl.cdiv(pixels, P)
    c, pixel = tl.arange(0, C), tl.program_id(0) % tiles * P + tl.arange(0, P)
    begin = (tl.program_id(0) // tiles).to(tl.int64) * channels * pixels
    at = begin + c[:, None] * pixels + pixel[None, :]
    held = (c < channels)[:, None] & (pixel < pixels)[None, :]
    v = tl.load(x + at, mask=held, other=0.0).to(dtype)
    m = _square(matrix, channels, c, False)
    mixed = tl.dot(m, v, input_precision=PRECISION, out_dtype=dtype)
    mixed += tl.load(offset + c, mask=c < channels, other=0.0)[:, None]
    tl.store(z + at, to_storage(mixed, storage), mask=held)


@_numbers
def couple_kernel(
    z, out, y, sums, rows, columns, parts, steps, clamp: tl.int64,
    SCALE: tl.constexpr, FIRST: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """columns: of half a sample. out: the raw scales of a sample, then its shifts."""
    storage: tl.constexpr = z.dtype.element_ty
    dtype: tl.constexpr = sums.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    limit = float_from_bits(clamp, dtype)
    total = tl.zeros((R, C), dtype)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        first = row * columns * 2 + column
        second = first + columns
        tl.store(y + first, tl.load(z + first, mask=inside), mask=inside)
        v = tl.load(z + second, mask=inside, other=0.0).to(dtype)
        s = tl.load(out + first, mask=inside, other=0.0).to(dtype)
        t = tl.load(out + second, mask=inside, other=0.0).to(dtype)
        factor, log, _ = scale_at(s, limit, SCALE, False)
        v = (v + t) * factor if FIRST else v * factor + t
        tl.store(y + second, to_storage(v, storage), mask=inside)
        total += tl.where(inside, log, 0.0)
        column += C
    tl.store(sums + row * parts + part, tl.sum(total, 1, keep_dims=True), mask=row < rows)


@_numbers
def uncouple_kernel(
    y, out, dy, dlogdet, z2, dz2, dout, rows, columns, parts, steps, clamp: tl.int64,
    SCALE: tl.constexpr, FIRST: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The coupling's input, and the gradients of it and of the network's output."""
    storage: tl.constexpr = y.dtype.element_ty
    dtype: tl.constexpr = dlogdet.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = (tl.program_id(0) // parts).to(index) * R + tl.arange(0, R)[:, None]
    part = tl.program_id(0) % parts
    column = (part * steps).to(index) * C + tl.arange(0, C)[None, :]
    limit = float_from_bits(clamp, dtype)
    of_log = tl.load(dlogdet + row, mask=row < rows, other=0.0)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        first = row * columns * 2 + column
        second = first + columns
        half = row * columns + column
        v = tl.load(y + second, mask=inside, other=0.0).to(dtype)
        d = tl.load(dy + second, mask=inside, other=0.0).to(dtype)
        s = tl.load(out + first, mask=inside, other=0.0).to(dtype)
        t = tl.load(out + second, mask=inside, other=0.0).to(dtype)
        factor, _, slope = scale_at(s, limit, SCALE, False)
        back, _, _ = scale_at(s, limit, SCALE, True)
        before = v * back - t if FIRST else (v - t) * back
        g = d * factor
        # Of the shift, and of the logarithm of the scale.
        of_shift = g if FIRST else d
        of_scale = d * v if FIRST else g * before
        tl.store(z2 + half, to_storage(before, storage), mask=inside)
        tl.store(dz2 + half, to_storage(g, storage), mask=inside)
        tl.store(dout + first, to_storage((of_scale + of_log) * slope, storage), mask=inside)
        tl.store(dout + second, to_storage(of_shift, storage), mask=inside)
        column += C


@triton.jit(do_not_specialize=("steps",))
def unmix_kernel(
    y, z2, dy, dz1, dz2, matrix, inverse, offset, x, dx, products, sums, samples, channels, pixels, steps,
    PRECISION: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The step's input, its gradient, and of each program's pixels the sums of dz x^T and of dz.

    Both matrices and the sums are in registers, which hold those of 32 channels.
    """
    storage: tl.constexpr = y.dtype.element_ty
    dtype: tl.constexpr = matrix.dtype.element_ty
    tiles = tl.cdiv(pixels, P)
    c, half = tl.arange(0, C), channels // 2
    turned = _square(matrix, channels, c, True)
    back = _square(inverse, channels, c, False)
    shift = tl.load(offset + c, mask=c < channels, other=0.0)[:, None]
    total, bias = tl.zeros((C, C), dtype), tl.zeros((C,), dtype)
    for step in range(steps):
        tile = tl.program_id(0) * steps + step
        sample = (tile // tiles).to(tl.int64)
        pixel = tile % tiles * P + tl.arange(0, P)
        inside = (sample < samples) & (pixel < pixels)[None, :]
        upper, lower = (
            (c < half)[:, None] & inside,
            ((c >= half) & (c < channels))[:, None] & inside,
        )
        own = c[:, None] * pixels + pixel[None, :]
        at = sample * channels * pixels + own
        # The halves of these hold one half's channels alone.
        first = sample * half * pixels + own
        second = first - half * pixels
        z = tl.load(y + at, mask=upper, other=0.0).to(dtype)
        z += tl.load(z2 + second, mask=lower, other=0.0).to(dtype)
        d = tl.load(dy + at, mask=upper, other=0.0).to(dtype)
        d += tl.load(dz2 + second, mask=lower, other=0.0).to(dtype)
        if dz1 is not None:
            d += tl.load(dz1 + first, mask=upper, other=0.0).to(dtype)
        v = tl.dot(back, z, input_precision=PRECISION, out_dtype=dtype) + shift
        g = tl.dot(turned, d, input_precision=PRECISION, out_dtype=dtype)
        held = upper | lower
        tl.store(x + at, to_storage(v, storage), mask=held)
        tl.store(dx + at, to_storage(g, storage), mask=held)
        # Beyond the last pixel d is zero, and v its offset.
        total += tl.dot(d, tl.trans(v), input_precision=PRECISION, out_dtype=dtype)
        bias += tl.sum(d, 1)
    line = tl.program_id(0).to(tl.int64) * channels + c
    held = (c < channels)[:, None] & (c < channels)[None, :]
    tl.store(products + line[:, None] * channels + c[None, :], total, mask=held)
    tl.store(sums + line, bias, mask=c < channels)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _precision(dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def _block(x: Tensor) -> tuple[int, int]:
    """Channels, filled up to what a product takes, and pixels."""
    return max(16, triton.next_power_of_2(x.size(1))), PIXELS.get(x.dtype, USUAL_PIXELS)


def _numbers_of(x: Tensor, *numbers: Tensor) -> list[Tensor]:
    return [t.to(_wide(x)).contiguous() for t in numbers]


def glow_mix(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """matrix x + offset at every pixel of (N, C, ...), contiguous."""
    x = x.contiguous()
    z = torch.empty_like(x)
    pixels, (c, p) = math.prod(x.shape[2:]), _block(x)
    with torch.cuda.device_of(x):
        mix_kernel[(x.size(0) * triton.cdiv(pixels, p),)](
            x, *_numbers_of(x, matrix, offset), z, x.size(1), pixels, _precision(_wide(x)), c, p
        )  # fmt: skip
    return z


def glow_couple(
    z: Tensor, out: Tensor, scale: str, clamp: float, shift_first: bool
) -> tuple[Tensor, Tensor]:
    """(z1, the coupling of z2 with the network's output), and logdet (N,)."""
    z, out = z.contiguous(), out.contiguous()
    y, plan = torch.empty_like(z), plan_rows(z[:, : z.size(1) // 2])
    sums = new_sums(z, plan)
    with torch.cuda.device_of(z):
        couple_kernel[plan.grid](
            z, out, y, sums, *plan[:4], float64_bits(clamp), SCALES.index(scale), shift_first, *plan[4:]
        )  # fmt: skip
    return y, add_parts(sums)


def glow_uncouple(
    y: Tensor,
    out: Tensor,
    dy: Tensor,
    dlogdet: Tensor,
    scale: str,
    clamp: float,
    shift_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z2, and the gradients of z2 and of the network's output."""
    y, out, dy, dlogdet = (t.contiguous() for t in (y, out, dy, dlogdet))
    half = y[:, : y.size(1) // 2]
    z2, dz2 = y.new_empty(half.shape), y.new_empty(half.shape)
    dout, plan = torch.empty_like(y), plan_rows(half)
    with torch.cuda.device_of(y):
        uncouple_kernel[plan.grid](
            y, out, dy, dlogdet, z2, dz2, dout, *plan[:4], float64_bits(clamp), SCALES.index(scale), shift_first,
            *plan[4:]
        )  # fmt: skip
    return z2, dz2, dout


def glow_unmix(
    y: Tensor,
    z2: Tensor,
    dy: Tensor,
    dz1: Tensor | None,
    dz2: Tensor,
    matrix: Tensor,
    inverse: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The step's input, and the gradients of it, of the matrix and of the offset of the forward pass."""
    y, z2, dy, dz2 = (t.contiguous() for t in (y, z2, dy, dz2))
    dz1 = None if dz1 is None else dz1.contiguous()
    x, dx = torch.empty_like(y), torch.empty_like(y)
    (samples, channels), pixels, (c, p) = y.shape[:2], math.prod(y.shape[2:]), _block(y)
    p = (
        p if c == 16 else 16
    )  # beside the sums and both matrices, which are then four times as large
    tiles = samples * triton.cdiv(pixels, p)
    steps = triton.cdiv(tiles, min(tiles, PROGRAMS))
    programs = triton.cdiv(tiles, steps)
    dtype = _wide(y)
    products = y.new_empty((programs, channels, channels), dtype=dtype)
    sums = y.new_empty((programs, channels), dtype=dtype)
    with torch.cuda.device_of(y):
        unmix_kernel[(programs,)](
            y, z2, dy, dz1, dz2, *_numbers_of(y, matrix, inverse, offset), x, dx, products, sums, samples, channels,
            pixels, steps, _precision(dtype), c, p, num_warps=4 if c == 16 else 8
        )  # fmt: skip
    return x, dx, products.sum(0), sums.sum(0)
