"""edge_conv, its adjoint and the gradient of its weight, for images of few channels: short loops over the kernel.

Forward and adjoint multiply and add in the type that is computed in, a tile of places by features or channels, and
leave out what lies outside the image. Programs of the adjoint have pixels of one phase (row % stride, column %
stride), which meet the same elements of the kernel. The weight's gradient is a product over all places, in pieces
that are added in a fixed order; float32 products are TF32 where torch's own setting allows that, else three of them.

Floor: the features once, the image once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import dense, gated_alike
from .bias_act import FLOAT64_SHARE, PROGRAMS, WIDE_FROM, float64_bits
from .elementary import float_from_bits, to_storage

# Of 128 threads: places and features forward; pixels and features of the adjoint; features, elements of the kernel and
# places of the weight's gradient.
FORWARD = (64, 16)
ADJOINT = (64, 4)
WEIGHT = (32, 32, 32)


@triton.jit
def _gated(f, gate, at, held, slope, dtype: tl.constexpr):
    """The gradient behind a leaky ReLU with output `gate`."""
    v = tl.load(f + at, mask=held, other=0.0).to(dtype)
    if gate is not None:
        positive = tl.load(gate + at, mask=held, other=0.0) > 0.0
        v = tl.where(positive, v, v * slope)
    return v


_numbers = triton.jit(do_not_specialize=("slope", "padding", "piece"))


@_numbers
def convolve_kernel(
    x, weight, bias, f, samples, channels, height, width, features, rows, columns, kh, kw, stride, padding,
    x0, x1, x2, x3, f0, f1, f2, f3, slope: tl.int64,
    WIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    place = tl.program_id(0).to(index) * N + tl.arange(0, N)
    k = tl.program_id(1) * K + tl.arange(0, K)
    q, p, n = place % columns, place // columns % rows, place // columns // rows
    inside, known = n < samples, k < features
    total = tl.zeros((N, K), dtype)
    size = channels * kh * kw
    for element in range(size):
        c, i, j = element // kw // kh, element // kw % kh, element % kw
        row, column = p * stride + i - padding, q * stride + j - padding
        held = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        v = tl.load(x + n * x0 + c * x1 + row * x2 + column * x3, mask=held, other=0.0).to(dtype)
        w = tl.load(weight + k * size + element, mask=known, other=0.0).to(dtype)
        total += tl.where(held[:, None], v[:, None] * w[None, :], 0.0)
    if bias is not None:
        total += tl.load(bias + k, mask=known, other=0.0).to(dtype)[None, :]
    factor = float_from_bits(slope, dtype)
    # A slope of 0 makes 0 of minus infinity too.
    total = tl.where(total < 0.0, tl.where(factor == 0.0, 0.0, total * factor), total)
    at = n[:, None] * f0 + k[None, :] * f1 + p[:, None] * f2 + q[:, None] * f3
    tl.store(f + at, to_storage(total, storage), mask=inside[:, None] & known[None, :])


@_numbers
def adjoint_kernel(
    f, gate, weight, x, samples, channels, height, width, features, rows, columns, kh, kw, stride, padding,
    x0, x1, x2, x3, f0, f1, f2, f3, slope: tl.int64,
    WIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = f.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    across = tl.cdiv(width, stride)
    down = tl.cdiv(height, stride)
    place = tl.program_id(0).to(index) * N + tl.arange(0, N)
    phase_row, phase_column = tl.program_id(1) // stride, tl.program_id(1) % stride
    n = place // across // down
    row = place // across % down * stride + phase_row
    column = place % across * stride + phase_column
    # The first elements of the kernel that the phase meets, and the features that these join to the pixels.
    i, j = (phase_row + padding) % stride, (phase_column + padding) % stride
    p, q = (row + padding - i) // stride, (column + padding - j) // stride
    c = tl.arange(0, C)
    inside = (n < samples) & (row < height) & (column < width)
    factor = float_from_bits(slope, dtype)
    total = tl.zeros((N, K, C), dtype)
    for a in range(tl.cdiv(kh - i, stride)):
        for b in range(tl.cdiv(kw - j, stride)):
            held = inside & (p - a >= 0) & (p - a < rows) & (q - b >= 0) & (q - b < columns)
            start = n * f0 + (p - a) * f2 + (q - b) * f3
            element = (i + a * stride) * kw + j + b * stride
            for first in range(0, features, K):
                k = first + tl.arange(0, K)
                met = held[:, None] & (k < features)[None, :]
                v = _gated(f, gate, start[:, None] + k[None, :] * f1, met, factor, dtype)
                line = (k[:, None] * channels + c[None, :]) * (kh * kw) + element
                known = (k < features)[:, None] & (c < channels)[None, :]
                w = tl.load(weight + line, mask=known, other=0.0).to(dtype)
                total += tl.where(met[:, :, None], v[:, :, None] * w[None, :, :], 0.0)
    at = n[:, None] * x0 + c[None, :] * x1 + row[:, None] * x2 + column[:, None] * x3
    result = to_storage(tl.sum(total, 1), storage)
    tl.store(x + at, result, mask=inside[:, None] & (c < channels)[None, :])


@_numbers
def weight_kernel(
    x, f, gate, sums, of_bias, samples, channels, height, width, features, rows, columns, kh, kw, stride, padding,
    x0, x1, x2, x3, f0, f1, f2, f3, slope: tl.int64, piece,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, K: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """sums (pieces, features, elements), of_bias (pieces, features): of the places of a piece."""
    dtype: tl.constexpr = sums.dtype.element_ty
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    k = tl.program_id(0) * K + tl.arange(0, K)
    element = tl.program_id(1) * E + tl.arange(0, E)
    size = channels * kh * kw
    c, i, j = element // kw // kh, element // kw % kh, element % kw
    known, met = k < features, element < size
    factor = float_from_bits(slope, dtype)
    total, bias = tl.zeros((K, E), dtype), tl.zeros((K,), dtype)
    begin = tl.program_id(2).to(index) * piece
    for start in range(0, piece, N):
        place = begin + start + tl.arange(0, N)
        q, p, n = place % columns, place // columns % rows, place // columns // rows
        inside = n < samples
        at = n[None, :] * f0 + k[:, None] * f1 + p[None, :] * f2 + q[None, :] * f3
        g = _gated(f, gate, at, known[:, None] & inside[None, :], factor, dtype)
        row = p[:, None] * stride + i[None, :] - padding
        column = q[:, None] * stride + j[None, :] - padding
        held = (inside[:, None] & met[None, :]) & (row >= 0) & (row < height)
        held = held & (column >= 0) & (column < width)
        at = n[:, None] * x0 + c[None, :] * x1 + row * x2 + column * x3
        v = tl.load(x + at, mask=held, other=0.0).to(dtype)
        total += tl.dot(g, v, input_precision=PRECISION, out_dtype=dtype)
        bias += tl.sum(g, 1)
    line = tl.program_id(2).to(tl.int64) * features + k
    tl.store(sums + line[:, None] * size + element, total, mask=known[:, None] & met[None, :])
    if of_bias is not None:
        tl.store(of_bias + line, bias, mask=known & (tl.program_id(1) == 0))


def _sizes(image: Tensor, feature: Tensor, kh: int, kw: int, *axes: int) -> tuple[int, ...]:
    """Sizes, and distances in memory."""
    return (*image.shape, *feature.shape[1:], kh, kw, *axes, *image.stride(), *feature.stride())


def _wide(image: Tensor, feature: Tensor) -> bool:
    return max(image.numel(), feature.numel()) >= WIDE_FROM


def _share(count: int, x: Tensor) -> int:
    return count // FLOAT64_SHARE if x.dtype == torch.float64 else count


def edge_conv(
    image: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    channels_last: bool,
    bias: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    """The features, leaky ReLU(conv(image, weight) + bias)."""
    image, weight = dense(image), weight.contiguous()
    features, _, kh, kw = weight.shape
    rows, columns = (
        (image.size(axis) + 2 * padding - weight.size(axis)) // stride + 1 for axis in (2, 3)
    )
    feature = torch.empty(
        (image.size(0), features, rows, columns),
        dtype=image.dtype,
        device=image.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if feature.numel() == 0:
        return feature
    n, k = _share(FORWARD[0], image), FORWARD[1]
    grid = (triton.cdiv(image.size(0) * rows * columns, n), triton.cdiv(features, k))
    with torch.cuda.device_of(image):
        convolve_kernel[grid](
            image, weight, None if bias is None else bias.contiguous(), feature,
            *_sizes(image, feature, kh, kw, stride, padding), float64_bits(slope), _wide(image, feature), n, k
        )  # fmt: skip
    return feature


def edge_conv_transpose(
    feature: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    height: int,
    width: int,
    gate: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    """The image (N, C, height, width) of gated features, contiguous."""
    (feature, gate), weight = gated_alike(feature, gate), weight.contiguous()
    _, channels, kh, kw = weight.shape
    image = feature.new_empty((feature.size(0), channels, height, width))
    if image.numel() == 0:
        return image
    n, k = _share(ADJOINT[0], feature), ADJOINT[1]
    places = feature.size(0) * triton.cdiv(height, stride) * triton.cdiv(width, stride)
    with torch.cuda.device_of(feature):
        adjoint_kernel[(triton.cdiv(places, n), stride * stride)](
            feature, gate, weight, image, *_sizes(image, feature, kh, kw, stride, padding), float64_bits(slope),
            _wide(image, feature), n, k, triton.next_power_of_2(channels)
        )  # fmt: skip
    return image


def edge_conv_weight(
    image: Tensor,
    feature: Tensor,
    stride: int,
    padding: int,
    kh: int,
    kw: int,
    gate: Tensor | None = None,
    slope: float = 1.0,
    want_bias: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gradients of the weight and, empty unless it is wanted, of the bias."""
    image, (feature, gate) = dense(image), gated_alike(feature, gate)
    features, channels = feature.size(1), image.size(1)
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    (k, e, n), size = WEIGHT, channels * kh * kw
    places = feature.numel() // max(features, 1)
    across = triton.cdiv(features, k) * triton.cdiv(size, e)
    blocks = triton.cdiv(places, n)
    along = triton.cdiv(blocks, max(1, min(blocks, triton.cdiv(PROGRAMS, across))))
    pieces = triton.cdiv(blocks, max(1, along))
    sums = image.new_empty((pieces, features, channels, kh, kw), dtype=dtype)
    bias = image.new_empty((pieces, features) if want_bias else (pieces, 0), dtype=dtype)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    precision = "ieee" if dtype == torch.float64 else "tf32" if tf32 else "tf32x3"
    if pieces:
        with torch.cuda.device_of(image):
            weight_kernel[(triton.cdiv(features, k), triton.cdiv(size, e), pieces)](
                image, feature, gate, sums, bias if want_bias else None,
                *_sizes(image, feature, kh, kw, stride, padding), float64_bits(slope), along * n, precision,
                _wide(image, feature), k, e, n
            )  # fmt: skip
    gradient, of_bias = (t.sum(0, dtype=torch.float64).to(image.dtype) for t in (sums, bias))
    return gradient, of_bias
