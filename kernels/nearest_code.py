"""nearest_code: blocks of a matrix product whose best column so far stays in registers; and the sums of each code.

|x - e|^2 is least where x.e - |e|^2 / 2 is greatest. A program holds the best score of its vectors while it goes over
the codes; no N x K matrix is written. float32 products are TF32 where torch's own setting allows that, else three TF32
products that make up for its rounding. The sums are a product with the 0-1 matrix of who chose whom, made in registers.

Floor: 2 N K D operations at the rate of a matrix product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import INTERPRETED

# (vectors, codes, dimensions) of a block for 256 threads; half types have those of HALF_BLOCK.
BLOCKS = {torch.float32: (64, 64, 32), torch.float64: (32, 32, 16)}
HALF_BLOCK = (128, 128, 64)
SUM_BLOCK = (32, 32, 32)  # vectors, codes, dimensions
PIECE = 1024  # vectors that a program sums

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def search_kernel(
    x, codebook, half_square, index, distance, vectors, codes, width,
    PRECISION: tl.constexpr, N: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = half_square.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    best = tl.full((N,), float("-inf"), dtype)
    nearest = tl.zeros((N,), tl.int32)
    for first in range(0, codes, K):
        code = first + tl.arange(0, K)
        score = tl.zeros((N, K), dtype)
        for start in range(0, width, D):
            d = start + tl.arange(0, D)
            at = row[:, None] * width + d[None, :]
            a = tl.load(x + at, mask=(row[:, None] < vectors) & (d[None, :] < width), other=0.0)
            at = code[None, :].to(tl.int64) * width + d[:, None]
            held = (code[None, :] < codes) & (d[:, None] < width)
            b = tl.load(codebook + at, mask=held, other=0.0)
            if INTERPRETED:  # which has no product of half types
                a, b = a.to(dtype), b.to(dtype)
            score += tl.dot(a, b, input_precision=PRECISION, out_dtype=dtype)
        half = tl.load(half_square + code, mask=code < codes, other=float("inf"))[None, :]
        score -= half
        # NaN is the greatest of all, and a code at infinity is never near.
        score = tl.where(score > LARGEST, LARGEST, score)
        score = tl.where(score == score, score, float("inf"))
        score = tl.where(half == float("inf"), float("-inf"), score)
        top = tl.max(score, 1)
        leftmost = tl.min(tl.where(score == top[:, None], code[None, :], 2147483647), 1)
        nearest = tl.where(top > best, leftmost, nearest)
        best = tl.where(top > best, top, best)
    total = tl.zeros((N, D), dtype)
    for start in range(0, width, D):
        d = start + tl.arange(0, D)[None, :]
        inside = (row[:, None] < vectors) & (d < width)
        a = tl.load(x + row[:, None] * width + d, mask=inside, other=0.0).to(dtype)
        at = nearest[:, None].to(tl.int64) * width + d
        b = tl.load(codebook + at, mask=inside, other=0.0).to(dtype)
        total += (a - b) * (a - b)
    tl.store(index + row, nearest.to(tl.int64), mask=row < vectors)
    tl.store(distance + row, tl.sum(total, 1), mask=row < vectors)


@triton.jit
def sums_kernel(
    x, index, counts, sums, vectors, codes, width, piece,
    N: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = sums.dtype.element_ty
    # Three products of TF32 numbers give a float32 sum; a half type's numbers are TF32 numbers already.
    precision: tl.constexpr = "ieee" if dtype == tl.float64 else "tf32x3"
    code = tl.program_id(0) * K + tl.arange(0, K)
    d = tl.program_id(1) * D + tl.arange(0, D)
    begin = tl.program_id(2).to(tl.int64) * piece
    total, count = tl.zeros((K, D), dtype), tl.zeros((K,), dtype)
    for start in range(0, piece, N):
        row = begin + start + tl.arange(0, N)
        chosen = tl.load(index + row, mask=row < vectors, other=-1)
        mine = (chosen[None, :] == code[:, None]).to(dtype)
        inside = (row[:, None] < vectors) & (d[None, :] < width)
        v = tl.load(x + row[:, None] * width + d[None, :], mask=inside, other=0.0).to(dtype)
        total += tl.dot(mine, v, input_precision=precision, out_dtype=dtype)
        count += tl.sum(mine, 1)
    line = tl.program_id(2).to(tl.int64) * codes + code
    held = (code[:, None] < codes) & (d[None, :] < width)
    tl.store(sums + line[:, None] * width + d[None, :], total, mask=held)
    tl.store(counts + line, count, mask=(code < codes) & (tl.program_id(1) == 0))


def _accumulation(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def nearest_code(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """index (N,) int64 and squared_distance (N,)."""
    x, codebook = x.contiguous(), codebook.contiguous()
    rows, dtype = x.size(0), _accumulation(x)
    index = torch.empty(rows, dtype=torch.int64, device=x.device)
    distance = torch.empty(rows, dtype=dtype, device=x.device)
    if rows == 0:
        return index, distance
    half_square = 0.5 * codebook.to(dtype).square().sum(1)
    block = BLOCKS.get(x.dtype, HALF_BLOCK)
    if x.dtype == torch.float32:
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    else:
        precision = "ieee"
    with torch.cuda.device_of(x):
        search_kernel[(triton.cdiv(rows, block[0]),)](
            x, codebook, half_square, index, distance, rows, *codebook.shape, precision, *block,
            num_warps=8
        )  # fmt: skip
    return index, distance


def code_sums(x: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code (K,), and their sum (K, D)."""
    x, index = x.contiguous(), index.contiguous()
    (rows, width), dtype = x.shape, _accumulation(x)
    pieces = max(1, triton.cdiv(rows, PIECE))
    counts = torch.empty((pieces, codes), dtype=dtype, device=x.device)
    sums = torch.empty((pieces, codes, width), dtype=dtype, device=x.device)
    n, k, d = SUM_BLOCK
    with torch.cuda.device_of(x):
        sums_kernel[(triton.cdiv(codes, k), max(1, triton.cdiv(width, d)), pieces)](
            x, index, counts, sums, rows, codes, width, PIECE, *SUM_BLOCK
        )
    if pieces == 1:
        return counts[0], sums[0]
    return counts.sum(0), sums.sum(0)
