"""Counter-based random numbers in Triton kernels: the words of `pyfastgan.ops.random_words`, and numbers made of them.

A kernel that needs noise calls `philox_words` for the blocks of four elements that it works on and makes uniform or
normal numbers of the words, by the formulas of csrc/math/normal.h. `pyfastgan/ops/random.py` says which element is
which lane of which block. `random_words`, `random_uniform` and `random_normal` write them to memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import log1p_near_zero

BLOCKS = 256  # of four elements, made by a program


@triton.jit
def philox_words(seed, block, sample, stream):
    """The four words of Philox4x32-10 with the key `seed` (int64), at (block low, block high, sample, stream).

    `block` is an int64 tensor, `sample` and `stream` hold 32-bit words in any integer type; they are broadcast.
    """
    zero = block * 0
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(seed, low, high, (zero + sample).to(tl.uint32), (zero + stream).to(tl.uint32))


@triton.jit
def _halves(w):
    """w + 1/2 as two float32 numbers without rounding: a multiple of 256, and the rest."""
    return (w >> 8).to(tl.int32).to(tl.float32) * 256.0, (w & 255).to(tl.int32).to(tl.float32) + 0.5


@triton.jit
def uniform_from_words(w):
    """(w + 1/2) / 2^32 rounded down to float32."""
    top, rest = _halves(w)
    total = top + rest
    # total - top is exact, so this is true just where the sum was rounded up; the number below has the bits less one.
    bits = total.to(tl.int32, bitcast=True)
    down = tl.where((total - top) > rest, bits - 1, bits)
    return down.to(tl.float32, bitcast=True) * 2.3283064365386963e-10


@triton.jit
def log_uniform(w):
    """ln((w + 1/2) / 2^32), not rounded before the logarithm. Near 1 it starts from the complement, which is exact."""
    near_one = w > 0xB504F333  # sqrt(1/2) * 2^32
    beside = ((w & 0x7FFFFFFF) ^ 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5
    complement = beside * -2.3283064365386963e-10
    top, rest = _halves(w)
    bits = (top + rest).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    f = tl.where(near_one, complement, mantissa)
    e = tl.where(near_one, 0.0, (exponent - 32).to(tl.float32))
    return e * 0.693359375 + (e * -2.12194440e-4 + log1p_near_zero(f))


@triton.jit
def cos_sin_turn(w):
    """cos and sin of 2 pi (w + 1/2) / 2^32; the reduction to an eighth of a turn is exact, in integers."""
    quarter = (w + 0x20000000) >> 30
    rest = (w - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32)
    t = (rest + 0.5) * 1.46291807926715968e-9
    u = t * t
    s = 8.333329e-03 + u * (-1.9839335e-04 + u * 2.7183041e-06)
    s = t + t * u * (-1.6666667e-01 + u * s)
    c = 4.1666646e-02 + u * (-1.3887367e-03 + u * 2.443838e-05)
    c = 1.0 - (0.5 * u - u * u * c)
    swapped = (quarter & 1) == 1
    cosine, sine = tl.where(swapped, s, c), tl.where(swapped, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    return cosine, tl.where((quarter & 2) != 0, -sine, sine)


@triton.jit
def normals_from_words(w0, w1):
    """Two standard normal numbers by Box and Muller's formula."""
    radius = tl.sqrt_rn(-2.0 * log_uniform(w0))
    cosine, sine = cos_sin_turn(w1)
    return radius * cosine, radius * sine


@triton.jit
def normals_from_words_double(w0, w1):
    """The same two numbers in float64; sine and cosine by Taylor's series, up to an eighth of a turn."""
    u = (w0.to(tl.int64).to(tl.float64) + 0.5) * 2.3283064365386962890625e-10
    radius = tl.sqrt(-2.0 * tl.log(u))
    quarter = (w1 + 0x20000000) >> 30
    rest = (w1 - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float64)
    t = (rest + 0.5) * tl.full(rest.shape, 1.46291807926715968105133e-9, tl.float64)
    u = t * t
    s = tl.full(t.shape, 1.0, tl.float64)
    c = tl.full(t.shape, 1.0, tl.float64)
    for k in tl.static_range(9):
        s = 1.0 - u * s / ((18 - 2 * k) * (19 - 2 * k))
        c = 1.0 - u * c / ((17 - 2 * k) * (18 - 2 * k))
    s *= t
    swapped = (quarter & 1) == 1
    cosine, sine = tl.where(swapped, s, c), tl.where(swapped, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    return radius * cosine, radius * tl.where((quarter & 2) != 0, -sine, sine)


@triton.jit
def normal_tile(
    seeds, row, block, stream, sample_offset, PER_SAMPLE: tl.constexpr, dtype: tl.constexpr
):
    """Normal numbers (R, 4 B) of the samples `row` (R, 1) and their blocks `block` (1, B), in float32 or float64."""
    at = block.to(tl.int64) + row.to(tl.int64) * 0
    if PER_SAMPLE:
        w0, w1, w2, w3 = philox_words(tl.load(seeds + row), at, 0, stream)
    else:
        w0, w1, w2, w3 = philox_words(tl.load(seeds), at, row + sample_offset, stream)
    if dtype == tl.float64:
        a, b = normals_from_words_double(w0, w1)
        c, d = normals_from_words_double(w2, w3)
    else:
        a, b = normals_from_words(w0, w1)
        c, d = normals_from_words(w2, w3)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (at.shape[0], at.shape[1] * 4))


WORDS, UNIFORM, NORMAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def fill_kernel(
    out,
    seeds,
    samples,
    elements,
    stream,
    sample_offset,
    PER_SAMPLE: tl.constexpr,
    KIND: tl.constexpr,
    N: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    blocks = (elements + 3) // 4
    sample, block = item // blocks, item % blocks
    inside = sample < samples
    if PER_SAMPLE:
        seed = tl.load(seeds + sample, mask=inside, other=0)
        w0, w1, w2, w3 = philox_words(seed, block, 0, stream)
    else:
        w0, w1, w2, w3 = philox_words(tl.load(seeds), block, sample + sample_offset, stream)
    if KIND == WORDS:
        a, b, c, d = w0.to(tl.int64), w1.to(tl.int64), w2.to(tl.int64), w3.to(tl.int64)
    elif KIND == UNIFORM:
        a, b = uniform_from_words(w0), uniform_from_words(w1)
        c, d = uniform_from_words(w2), uniform_from_words(w3)
    else:
        a, b = normals_from_words(w0, w1)
        c, d = normals_from_words(w2, w3)
    first, left = out + sample * elements + 4 * block, elements - 4 * block
    tl.store(first, a, mask=inside)
    tl.store(first + 1, b, mask=inside & (left > 1))
    tl.store(first + 2, c, mask=inside & (left > 2))
    tl.store(first + 3, d, mask=inside & (left > 3))


def _launch(
    kind: Any,
    dtype: torch.dtype,
    seed: Tensor,
    shape: Sequence[int],
    stream: int,
    sample_offset: int,
) -> Tensor:
    samples, elements = (
        (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    )
    out = torch.empty(shape, dtype=dtype, device=seed.device)
    if out.numel():
        grid = (triton.cdiv(samples * ((elements + 3) // 4), BLOCKS),)
        with torch.cuda.device_of(seed):
            fill_kernel[grid](
                out, seed.contiguous(), samples, elements, stream, sample_offset, seed.dim() > 0, kind, BLOCKS
            )  # fmt: skip
    return out


def random_words(seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int) -> Tensor:
    """uint32 words in an int64 tensor; `seed` is an int64 tensor with one number, or one a sample (dimension 0)."""
    return _launch(WORDS, torch.int64, seed, shape, stream, sample_offset)


def random_uniform(seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int) -> Tensor:
    """float32 numbers in [0, 1)."""
    return _launch(UNIFORM, torch.float32, seed, shape, stream, sample_offset)


def random_normal(seed: Tensor, shape: Sequence[int], stream: int, sample_offset: int) -> Tensor:
    """Standard normal float32 numbers."""
    return _launch(NORMAL, torch.float32, seed, shape, stream, sample_offset)
