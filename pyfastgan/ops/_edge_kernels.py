"""The kernels of `edge_conv` and their references: a convolution, its adjoint in the image and that in the weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._layout import gated_alike
from . import _backends
from ._common import TYPE_NUMBER, address, dense, fresh
from ._registry import Kernel


def size_of(image: int, kernel: int, stride: int, padding: int) -> int:
    """Of the features, along an axis."""
    return (image + 2 * padding - kernel) // stride + 1


def _wide(x: Tensor) -> Tensor:
    """Half types are computed in float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


# The kernels' references are sums over the kernel's elements, whose order, unlike that of torch's
# convolutions, does not depend on the number of threads.
def _windows(
    image: tuple[int, int],
    feature: tuple[int, int],
    kernel: Sequence[int],
    stride: int,
    padding: int,
) -> Iterator[tuple[tuple[int, int], tuple[Any, ...], tuple[Any, ...]]]:
    """Each element (i, j) of the kernel, the pixels that it meets and the features it joins them to, as
    indices."""

    def along(size: int, count: int, i: int) -> tuple[slice, slice]:
        first = max(0, -((i - padding) // stride))
        last = min(count, (size - 1 + padding - i) // stride + 1)
        start = stride * first + i - padding
        joined = max(0, last - first)
        return slice(start, start + stride * joined, stride), slice(first, first + joined)

    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows, columns = along(image[0], feature[0], i), along(image[1], feature[1], j)
            yield (i, j), (..., rows[0], columns[0]), (..., rows[1], columns[1])


def _conv_reference(
    image: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    channels_last: bool,
    bias: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    y = _conv_fake(_wide(image), weight, stride, padding, channels_last).zero_()
    x, w = _wide(image), _wide(weight)
    windows = _windows(x.shape[2:], y.shape[2:], w.shape[2:], stride, padding)  # type: ignore[arg-type]
    for (i, j), pixels, places in windows:
        for c in range(x.size(1)):
            y[places] += w[:, c, i, j].view(-1, 1, 1) * x[:, c : c + 1][pixels]
    if bias is not None:
        y += bias.view(-1, 1, 1)
    if slope != 1.0:
        y = F.relu(y) if slope == 0.0 else F.leaky_relu(y, slope)
    return y.to(image.dtype)


def _gated(x: Tensor, gate: Tensor | None, slope: float) -> Tensor:
    """The gradient behind a leaky ReLU with output `gate`, in the computing type."""
    x = _wide(x)
    return x if gate is None else torch.where(gate > 0, x, slope * x)


def _conv_fake(
    image: Tensor, weight: Tensor, stride: int, padding: int, channels_last: bool, *_: Any
) -> Tensor:
    sizes = (size_of(image.size(axis), weight.size(axis), stride, padding) for axis in (2, 3))
    return fresh(image, (image.size(0), weight.size(0), *sizes), channels_last=channels_last)


def _transpose_reference(
    feature: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    height: int,
    width: int,
    gate: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    y = _transpose_fake(_wide(feature), weight, stride, padding, height, width).zero_()
    f, w = _gated(feature, gate, slope), _wide(weight)
    windows = _windows((height, width), f.shape[2:], w.shape[2:], stride, padding)  # type: ignore[arg-type]
    for (i, j), pixels, places in windows:
        for k in range(f.size(1)):
            y[pixels] += w[k, :, i, j].view(-1, 1, 1) * f[:, k : k + 1][places]
    return y.to(feature.dtype)


def _transpose_fake(
    feature: Tensor, weight: Tensor, stride: int, padding: int, height: int, width: int, *_: Any
) -> Tensor:
    return fresh(feature, (feature.size(0), weight.size(1), height, width))


def _weight_reference(
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
    x, f = _wide(image), _gated(feature, gate, slope)
    gradient, bias = _weight_fake(x, f, stride, padding, kh, kw, None, slope, want_bias)
    windows = _windows(x.shape[2:], f.shape[2:], (kh, kw), stride, padding)  # type: ignore[arg-type]
    for (i, j), pixels, places in windows:
        for c in range(x.size(1)):
            gradient[:, c, i, j] = (f[places] * x[:, c : c + 1][pixels]).sum((0, 2, 3))
    if want_bias:
        bias = f.sum((0, 2, 3))
    return gradient.to(image.dtype), bias.to(image.dtype)


def _weight_fake(
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
    gradient = image.new_empty((feature.size(1), image.size(1), kh, kw))
    return gradient, image.new_empty(feature.size(1) if want_bias else 0)


def _launch(
    function: str,
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, ...],
    slope: float,
    image: Tensor,
    feature: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: int,
) -> None:
    getattr(_backends.native("_cpu"), function)(
        *map(address, inputs),
        *map(address, outputs),
        slope,
        TYPE_NUMBER[image.dtype],
        torch.get_num_threads(),
        *image.shape,
        *feature.shape[1:],
        *kernel,
        stride,
        padding,
        *image.stride(),
        *feature.stride(),
    )


def _finite(weight: Tensor) -> bool:
    """Whether zeros around the image may be multiplied by it."""
    return math.isfinite(weight.sum(dtype=torch.float64).item())


# Whether the processor multiplies bfloat16 as it is, which torch does and the kernels do not.
_MULTIPLIES_BFLOAT16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


# What torch's convolution needs to be worth its preparations: products at a place, and products in all; a contiguous
# result it writes twice.
_WORTH_PLACE, _WORTH = 32, 1 << 25
_WORTH_PLACE_LAST, _WORTH_LAST = 24, 1 << 23


def _torch_is_faster(
    image: Tensor, weight: Tensor, stride: int, padding: int, channels_last: bool
) -> bool:
    """In a forward pass of enough products in bfloat16, where the processor multiplies that as it is."""
    if image.dtype != torch.bfloat16 or not _MULTIPLIES_BFLOAT16:
        return False
    samples, channels, height, width = image.shape
    features, _, kh, kw = weight.shape
    place = channels * kh * kw
    least = _WORTH_PLACE_LAST if channels_last else _WORTH_PLACE
    if _backends.choice.name != "auto" or place < least:
        return False
    products = samples * features * place
    products *= size_of(height, kh, stride, padding) * size_of(width, kw, stride, padding)
    return products >= (_WORTH_LAST if channels_last else _WORTH)


def _conv_torch(
    image: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    channels_last: bool,
    bias: Tensor | None,
    slope: float,
) -> Tensor:
    form = torch.channels_last if channels_last else torch.contiguous_format
    image = image.contiguous(memory_format=form)
    if not channels_last:
        weight = weight.contiguous()
    y = F.conv2d(image, weight, bias, stride, padding)
    # torch takes one channel, which lies either way, as contiguous.
    y = y.contiguous(memory_format=form)
    if slope == 1.0:
        return y
    return F.relu_(y) if slope == 0.0 else F.leaky_relu_(y, slope)


def _conv_cpu(
    image: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    channels_last: bool,
    bias: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    if _torch_is_faster(image, weight, stride, padding, channels_last):
        return _conv_torch(image, weight, stride, padding, channels_last, bias, slope)
    if not _finite(weight):
        return _conv_reference(image, weight, stride, padding, channels_last, bias, slope)
    image, weight = dense(image), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    feature = _conv_fake(image, weight, stride, padding, channels_last)
    inputs, kernel = (image, weight, bias), weight.shape[2:]
    _launch("edge_conv", inputs, (feature,), slope, image, feature, kernel, stride, padding)
    return feature


def _transpose_cpu(
    feature: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    height: int,
    width: int,
    gate: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    if not _finite(weight):
        arguments = (feature, weight, stride, padding, height, width, gate, slope)
        return _transpose_reference(*arguments)
    (feature, gate), weight = gated_alike(feature, gate), weight.contiguous()
    image = _transpose_fake(feature, weight, stride, padding, height, width)
    inputs, kernel = (feature, gate, weight), weight.shape[2:]
    _launch("edge_conv_transpose", inputs, (image,), slope, image, feature, kernel, stride, padding)
    return image


def _weight_cpu(
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
    image, (feature, gate) = dense(image), gated_alike(feature, gate)
    gradient, bias = _weight_fake(image, feature, stride, padding, kh, kw, None, slope, want_bias)
    inputs, outputs = (image, feature, gate), (gradient, bias if want_bias else None)
    _launch("edge_conv_weight", inputs, outputs, slope, image, feature, (kh, kw), stride, padding)
    return gradient, bias


def _points_reference(points: Tensor, matrix: Tensor) -> Tensor:
    return points @ matrix


def _points_fake(points: Tensor, matrix: Tensor) -> Tensor:
    return fresh(points, (points.size(0), matrix.size(1)))


def _points_cpu(points: Tensor, matrix: Tensor) -> Tensor:
    points, matrix = points.contiguous(), matrix.contiguous()
    y = _points_fake(points, matrix)
    _backends.native("_cpu").edge_conv_points(
        *(points.data_ptr(), matrix.data_ptr(), address(y), points.size(0), *matrix.shape),
        *(TYPE_NUMBER[points.dtype], torch.get_num_threads()),
    )
    return y


# With a leaky ReLU (slope 0: a ReLU, slope 1: nothing): the forward pass takes it of the result, the
# others take its backward pass of the features, where its output `gate` is not positive.
conv = Kernel(
    "edge_conv(Tensor image, Tensor weight, int stride, int padding, bool channels_last, "
    "Tensor? bias=None, float slope=1.0) -> Tensor",
    reference=_conv_reference,
    fake=_conv_fake,
    cpu=_conv_cpu,
    triton="edge_conv:edge_conv",
)
transpose = Kernel(
    "edge_conv_transpose(Tensor feature, Tensor weight, int stride, int padding, SymInt height, "
    "SymInt width, Tensor? gate=None, float slope=1.0) -> Tensor",
    reference=_transpose_reference,
    fake=_transpose_fake,
    cpu=_transpose_cpu,
    triton="edge_conv:edge_conv_transpose",
)
weight_gradient = Kernel(
    "edge_conv_weight(Tensor image, Tensor feature, int stride, int padding, SymInt kh, SymInt kw, "
    "Tensor? gate=None, float slope=1.0, bool want_bias=False) -> (Tensor, Tensor)",
    reference=_weight_reference,
    fake=_weight_fake,
    cpu=_weight_cpu,
    triton="edge_conv:edge_conv_weight",
)
# A transposed convolution of 1 x 1 inputs, in float32 and float64: (N, K) points times a (K, C kh kw) matrix.
points_product = Kernel(
    "edge_conv_points(Tensor points, Tensor matrix) -> Tensor",
    reference=_points_reference,
    fake=_points_fake,
    cpu=_points_cpu,
)
KERNELS = (conv, transpose, weight_gradient)
