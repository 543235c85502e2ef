"""mmd: sums of Gaussian kernels over the pairs of two samples, and what they pull each vector by; no N x M matrix.

A program holds a block of vectors and goes over a piece of the others: a block of products gives the distances, these
the kernels, and, where a derivative is wanted, a second product sums weight_ij b_j into registers. The pieces are
added in a fixed order. float32 products are TF32 where torch's own setting allows that, else three TF32 products.

Floor: 2 N M D operations at the rate of a matrix product for each pair of samples, 4 with a derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bias_act import PROGRAMS

# (vectors, others, dimensions of a step, dimensions that are summed) of a block for 128 threads.
BLOCKS = {torch.float32: (32, 64, 32, 64), torch.float64: (16, 32, 16, 16)}


@triton.jit(do_not_specialize=("piece", "count"))
def pairs_kernel(
    a, b, squares_a, squares_b, coefficients, sums, pull, rows, others, width, piece, count,
    OWN: tl.constexpr, PRECISION: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """sums[p, i]: of the kernels of a_i with piece p of b; pull[p, i]: the sum of weight_ij (b_j - a_i).

    With OWN, b is a, and a vector is no pair with itself.
    """
    dtype: tl.constexpr = sums.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    summed = tl.program_id(1) * P + tl.arange(0, P)
    own_square = tl.load(squares_a + row, mask=row < rows, other=0.0)[:, None]
    total, weights = tl.zeros((N,), dtype), tl.zeros((N,), dtype)
    pulled = tl.zeros((N, P), dtype)
    begin = tl.program_id(2).to(tl.int64) * piece
    for start in range(0, piece, K):
        other = begin + start + tl.arange(0, K)
        product = tl.zeros((N, K), dtype)
        for first in range(0, width, D):
            d = first + tl.arange(0, D)
            held = (row[:, None] < rows) & (d[None, :] < width)
            left = tl.load(a + row[:, None] * width + d[None, :], mask=held, other=0.0)
            held = (other[None, :] < others) & (d[:, None] < width)
            right = tl.load(b + other[None, :] * width + d[:, None], mask=held, other=0.0)
            product += tl.dot(left, right, input_precision=PRECISION, out_dtype=dtype)
        square = tl.load(squares_b + other, mask=other < others, other=0.0)[None, :]
        distance = own_square + square - 2.0 * product
        distance = tl.where(distance < 0.0, 0.0, distance)  # NaN stays
        pair = (row[:, None] < rows) & (other[None, :] < others)
        if OWN:
            pair = pair & (row[:, None] != other[None, :])
        value, weight = tl.zeros((N, K), dtype), tl.zeros((N, K), dtype)
        for k in range(count):
            c = tl.load(coefficients + k)
            e = tl.exp(distance * c)
            value += e
            weight += e * (-2.0 * c)
        total += tl.sum(tl.where(pair, value, 0.0), 1)
        if pull is not None:
            weight = tl.where(pair, weight, 0.0)
            weights += tl.sum(weight, 1)
            held = (other[:, None] < others) & (summed[None, :] < width)
            right = tl.load(b + other[:, None] * width + summed[None, :], mask=held, other=0.0)
            pulled += tl.dot(weight, right, input_precision=PRECISION, out_dtype=dtype)
    line = tl.program_id(2).to(tl.int64) * rows + row
    held = (row < rows) & (tl.program_id(1) == 0)
    tl.store(sums + line, total, mask=held)
    if pull is not None:
        held = (row[:, None] < rows) & (summed[None, :] < width)
        left = tl.load(a + row[:, None] * width + summed[None, :], mask=held, other=0.0)
        pulled -= weights[:, None] * left
        tl.store(pull + line[:, None] * width + summed[None, :], pulled, mask=held)


def _pairs(
    a: Tensor, b: Tensor, squares: tuple[Tensor, Tensor], coefficients: Tensor, want_pull: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum over the pairs of a and b, of other vectors where they are one tensor, and the pulls (N, D) or None."""
    n, k, d, p = BLOCKS[a.dtype]
    (rows, width), others = a.shape, len(b)
    across = triton.cdiv(rows, n)
    blocks = triton.cdiv(others, k)
    along = triton.cdiv(blocks, min(blocks, triton.cdiv(PROGRAMS, across)))
    pieces = triton.cdiv(blocks, along)
    sums = a.new_empty((pieces, rows))
    pull = a.new_empty((pieces, rows, width)) if want_pull else None
    tf32 = torch.backends.cuda.matmul.allow_tf32
    precision = "ieee" if a.dtype == torch.float64 else "tf32" if tf32 else "tf32x3"
    grid = (across, triton.cdiv(width, p) if want_pull else 1, pieces)
    with torch.cuda.device_of(a):
        pairs_kernel[grid](
            a, b, *squares, coefficients, sums, pull, rows, others, width, along * k, len(coefficients),
            a is b, precision, n, k, d, p
        )  # fmt: skip
    # Row by row, whose sums are of one size.
    return sums.sum(1).sum(), None if pull is None else pull.sum(0)


def mmd(
    x: Tensor, y: Tensor, bandwidths: Sequence[float], unbiased: bool, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The value and, where bits of `wanted` ask for them, its derivatives by x and y."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(dtype), y.to(dtype)
    centre = x.mean(0)
    x, y = (x - centre).contiguous(), (y - centre).contiguous()
    square_x, square_y = x.square().sum(1), y.square().sum(1)
    # Filled one by one: a list would be copied from the host, which waits for the device.
    coefficients = torch.stack([x.new_full((), -0.5 / s**2) for s in bandwidths])
    rows, others = len(x), len(y)
    own_x, own_y = (1 / (n * (n - 1) if unbiased else n * n) for n in (rows, others))
    cross = 1 / (rows * others)
    met_x, pull_x = _pairs(x, x, (square_x, square_x), coefficients, bool(wanted & 1))
    met_y, pull_y = _pairs(y, y, (square_y, square_y), coefficients, bool(wanted & 2))
    met, across = _pairs(x, y, (square_x, square_y), coefficients, bool(wanted & 1))
    value = own_x * met_x + own_y * met_y - 2 * cross * met
    if not unbiased:  # the pairs of a vector with itself
        value += len(bandwidths) * (1 / rows + 1 / others)
    dx, dy = x.new_empty(0), y.new_empty(0)
    if pull_x is not None:
        dx = 2 * own_x * pull_x - 2 * cross * across
    if pull_y is not None:
        _, across = _pairs(y, x, (square_y, square_x), coefficients, True)
        dy = 2 * own_y * pull_y - 2 * cross * across
    return value, dx, dy
