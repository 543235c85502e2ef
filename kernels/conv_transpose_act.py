"""A transposed convolution with bias, activation and the moments of each channel: a matrix product a phase.

The pixels of one phase (row % stride, column % stride) meet the same elements of the kernel, so each phase of a block
of pixels is a product over these elements and the input's channels, with no zeros between. Bias and activation join
the sums in registers, and so do the moments of what is stored, a mean and a sum of squares about it for each block.
float32 products are TF32 where torch allows that of convolutions (`torch.backends.cudnn.allow_tf32`), else three
TF32 products; half types are taken as they are, and added in float32.

Floor: 2 N H' W' K C kh kw operations at the rate of a matrix product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import dense
from .activation import ACTIVATIONS, activate
from .bias_act import FLOAT64_SHARE, WIDE_FROM, float64_bits
from .elementary import INTERPRETED, float_from_bits, to_storage

BLOCK = (64, 32, 64)  # pixels, channels of the input and of the result, of 128 threads


@triton.jit(do_not_specialize=("slope", "padding"))
def product_kernel(
    x, weight, bias, y, counts, means, squares, samples, features, rows, columns, channels, height, width,
    kh, kw, stride, padding, x0, x1, x2, x3, y0, y1, y2, y3, slope: tl.int64,
    ACT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """weight: (kh, kw, features, channels)."""
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    across, down = tl.cdiv(width, stride), tl.cdiv(height, stride)
    place = tl.program_id(0).to(index) * N + tl.arange(0, N)
    c = tl.program_id(1) * C + tl.arange(0, C)
    phase_row, phase_column = tl.program_id(2) // stride, tl.program_id(2) % stride
    n = place // across // down
    row = place // across % down * stride + phase_row
    column = place % across * stride + phase_column
    # The first elements of the kernel that the phase meets, and what these join to the pixels.
    i, j = (phase_row + padding) % stride, (phase_column + padding) % stride
    p, q = (row + padding - i) // stride, (column + padding - j) // stride
    inside = (n < samples) & (row < height) & (column < width)
    total = tl.zeros((N, C), dtype)
    for a in range(tl.cdiv(kh - i, stride)):
        for b in range(tl.cdiv(kw - j, stride)):
            met = inside & (p - a >= 0) & (p - a < rows) & (q - b >= 0) & (q - b < columns)
            start = n * x0 + (p - a) * x2 + (q - b) * x3
            element = (i + a * stride) * kw + j + b * stride
            for first in range(0, features, K):
                k = first + tl.arange(0, K)
                held = met[:, None] & (k < features)[None, :]
                v = tl.load(x + start[:, None] + k[None, :] * x1, mask=held, other=0.0)
                held = (k < features)[:, None] & (c < channels)[None, :]
                line = (element * features + k[:, None]) * channels + c[None, :]
                w = tl.load(weight + line, mask=held, other=0.0)
                if INTERPRETED:  # which has no product of half types
                    v, w = v.to(dtype), w.to(dtype)
                total += tl.dot(v, w, input_precision=PRECISION, out_dtype=dtype)
    known = c < channels
    if bias is not None:
        total += tl.load(bias + c, mask=known, other=0.0).to(dtype)[None, :]
    result = to_storage(activate(total, float_from_bits(slope, dtype), ACT), storage)
    held = inside[:, None] & known[None, :]
    at = n[:, None] * y0 + c[None, :] * y1 + row[:, None] * y2 + column[:, None] * y3
    tl.store(y + at, result, mask=held)
    if counts is not None:
        value = tl.where(held, result.to(dtype), 0.0)
        count = tl.sum(inside.to(tl.int32), 0).to(dtype)
        mean = tl.sum(value, 0) / tl.where(count > 0.0, count, 1.0)
        apart = tl.where(held, value - mean[None, :], 0.0)
        block = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        line = block.to(tl.int64) * channels + c
        tl.store(counts + block, count, mask=tl.program_id(1) == 0)
        tl.store(means + line, mean, mask=known)
        tl.store(squares + line, tl.sum(apart * apart, 0), mask=known)


def conv_transpose_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: int,
    act: str,
    slope: float,
    want_moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(conv_transpose(x, weight) + bias), channels-last if x is; the mean and the variance of each channel, empty
    unless they are wanted."""
    x = dense(x)
    samples, features, rows, columns = x.shape
    _, channels, kh, kw = weight.shape
    height, width = (
        (x.size(axis) - 1) * stride - 2 * padding + weight.size(axis) + output_padding
        for axis in (2, 3)
    )
    last = not x.is_contiguous()
    y = torch.empty(
        (samples, channels, height, width), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    none = y.new_empty(0, dtype=dtype)
    if y.numel() == 0:
        return y, none, none
    n, k, c = BLOCK
    n = n // FLOAT64_SHARE if dtype == torch.float64 else n
    c = min(c, max(16, triton.next_power_of_2(channels)))
    k = min(k, max(16, triton.next_power_of_2(features)))
    places = samples * triton.cdiv(height, stride) * triton.cdiv(width, stride)
    grid = (triton.cdiv(places, n), triton.cdiv(channels, c), stride * stride)
    blocks = grid[0] * grid[2] if want_moments else 0
    counts = y.new_empty(blocks, dtype=dtype)
    means, squares = (y.new_empty((blocks, channels), dtype=dtype) for _ in range(2))
    kept = (counts, means, squares) if want_moments else (None, None, None)
    tf32 = torch.backends.cudnn.allow_tf32
    precision = "ieee" if x.dtype != torch.float32 else "tf32" if tf32 else "tf32x3"
    wide = max(x.numel(), y.numel()) >= WIDE_FROM
    with torch.cuda.device_of(x):
        product_kernel[grid](
            x, weight.permute(2, 3, 0, 1).contiguous(), None if bias is None else bias.contiguous(), y, *kept,
            samples, features, rows, columns, channels, height, width, kh, kw, stride, padding, *x.stride(),
            *y.stride(), float64_bits(slope), ACTIVATIONS.index(act), precision, wide, n, k, c
        )  # fmt: skip
    if not want_moments:
        return y, none, none
    # About the mean of all, in float64: the blocks' means may be large beside what they differ by.
    share = (counts.double() / (samples * height * width))[:, None]
    mean = (share * means).sum(0)
    var = (share * (means - mean).square()).sum(0) + squares.sum(0, dtype=torch.float64) / (
        samples * height * width
    )
    return y, mean.to(dtype), var.to(dtype)
