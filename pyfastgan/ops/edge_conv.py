"""edge_conv, edge_conv_transpose: convolutions at the image's edge of a network, where there are few channels.

    edge_conv            y[n, k, p] = act(sum_{c, i} weight[k, c, i] x[n, c, stride p + i - padding] + bias[k])
    edge_conv_transpose  the adjoint of the convolution: what `torch.nn.functional.conv_transpose2d` computes

    edge_conv            x (N, C, H, W), weight (K, C, kh, kw)   -> y (N, K, H', W')
    edge_conv_transpose  x (N, K, H', W'), weight (K, C, kh, kw) -> y (N, C, H, W)

`plan` says what serves a call. "edge" are kernels of our own, for images of few channels C on a CPU,
where torch's convolution reaches a fifth of the machine's matrix rate: a critic's first layer, a
generator's last one, forward, in the gradient of the data (each is the other's) and in that of the
weight. "matrix" is a matrix product, for transposed convolutions of 1 x 1 inputs, by a kernel of our own in float32 and
float64, and for convolutions whose kernel is as large as the image, with 1 x 1 results, by torch. "torch" is
torch's convolution, for everything else: in the middle of a network it runs at that rate already, but for the gradient
of the weight, for which `_wide_conv.py` has a kernel where there are 32 channels and more on the image's side.

For 64 images of 64 pixels, k4 s2 p1, on two AVX-512 threads of one core, 400 million operations take 1.2 ms at the
rate of multiply-adds, and 2.2 at that of torch's matrix product, which is no limit here. With a 4 x 4 kernel, stride 2
and so large results of even sizes, 3 -> 64 channels and the gradient of the weight take 9/16 of these products in
float32 (csrc/cpu/edge_conv_tiles.h), beside 17 MB that are written or read; images, weights and sums that are not
finite, or so large that sums of four might not be, take them all. The measured times stand in docs/benchmarks.md.

Where no backend is asked for by name and the processor multiplies bfloat16 as it is, torch serves forward passes in
bfloat16 of at least 32 products at a place and 2^25 in all, 24 and 2^23 channels-last, where it writes its result
once: it multiplies twice as many numbers at once. Calls of fewer products are over before torch has prepared its own.

A convolution is linear in each argument, so the three kernels are each other's derivatives, and it
can be differentiated any number of times (with a smooth activation twice), also with `torch.func`;
forward mode is torch's own. An "edge" plan adds the bias and a linear, relu or leaky_relu activation
as it stores the result, which is kept for the backward pass beside x and weight. The
result is contiguous, or channels-last if an argument is (an image of an "edge" plan is contiguous
in any case). bfloat16 and float16 are computed in float32 and rounded once; weight gradients are
summed over samples in float64, in a fixed order.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._names import check_choice
from . import _backends
from ._common import apply, check_float, forward_mode, needs_grad, under_autocast
from ._edge_cases import bad_calls, points_rows, rows, samples
from ._edge_gradients import (
    _CPU_KERNELS,
    _call,
    _Conv,
    _ConvAct,
    _is_last,
    _points_times,
    _Transpose,
)
from ._edge_kernels import KERNELS, conv, size_of, transpose
from ._recompute import forgetting
from ._registry import FLOATS, Op, register
from ._wide_conv import convolve
from ._wide_conv import rows as wide_rows
from .bias_act import ACTIVATIONS, bias_act, bias_act_reference

# The numbers of outputs at a place of the image, channels * stride^2, that the kernels are compiled for.
_OUTPUTS = (1, 2, 3, 4, 8, 12, 16)
_FEW, _MANY = 4, 8


def plan(
    weight: Tensor, stride: int, *, features_size: tuple[int, int], padding: int = 0
) -> Literal["edge", "matrix", "torch"]:
    """What serves a convolution with this weight whose results are of `features_size`, or a transposed one whose
    inputs are.

    "edge" needs a CPU with the compiled kernels, at most 4 channels on the image's side and at least
    8 on the other, a stride that divides the kernel, and channels * stride^2 in (1, 2, 3, 4, 8, 12, 16). The
    Triton kernels, which have not been measured beside torch's convolution, serve where "triton" is chosen by name.
    """
    features, channels, kh, kw = weight.shape
    if features_size == (1, 1) and padding == 0:
        return "matrix"
    few = channels <= _FEW and features >= _MANY and channels * stride**2 in _OUTPUTS
    whole = kh % stride == 0 and kw % stride == 0
    # Without the compiled kernels there is only their reference, which defines them and is slow.
    chosen = _backends.choice.name
    on_cpu = weight.device.type == "cpu" and (_CPU_KERNELS or chosen == "reference")
    return "edge" if few and whole and (on_cpu or chosen == "triton") else "torch"


def edge_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    act: str = "linear",
    slope: float = 0.2,
) -> Tensor:
    """The definition."""
    y = F.conv2d(x, weight, bias, stride, padding)
    return bias_act_reference(y, None, act, slope=slope)


def edge_conv_transpose_reference(
    x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0, output_padding: int = 0
) -> Tensor:
    """The definition."""
    return F.conv_transpose2d(x, weight, None, stride, padding, output_padding)


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check(x: Tensor, weight: Tensor, channels_axis: int, stride: int, padding: int) -> None:
    check_float("x", x)
    check_float("weight", weight)
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(tensor.shape)}")
    if weight.numel() == 0:
        raise ValueError(f"weight must have elements, got shape {tuple(weight.shape)}")
    if weight.size(channels_axis) != x.size(1):
        raise ValueError(
            f"weight must have {x.size(1)} in dimension {channels_axis}, the channels of x "
            f"{tuple(x.shape)}, got shape {tuple(weight.shape)}"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"x must have channels, rows and columns, got shape {tuple(x.shape)}")
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device} like x, got {weight.device}")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight must have the dtype of x, {x.dtype}, got {weight.dtype}")
    _check_count("stride", stride, 1)
    _check_count("padding", padding, 0)


def _check_act(x: Tensor, features: int, bias: Tensor | None, act: str, slope: float) -> None:
    check_choice("act", act, ACTIVATIONS)
    if not (math.isfinite(slope) and slope >= 0):
        raise ValueError(f"slope must be finite and at least 0, got {slope}")
    if bias is None:
        return
    check_float("bias", bias)
    if bias.shape != (features,):
        raise ValueError(f"bias must have shape ({features},), got {tuple(bias.shape)}")
    if bias.device != x.device:
        raise ValueError(f"bias must be on {x.device} like x, got {bias.device}")
    if bias.dtype != x.dtype and not under_autocast(x.device):
        raise TypeError(f"bias must have the dtype of x, {x.dtype}, got {bias.dtype}")


def _under_autocast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As torch's convolutions: in the low precision, unless it is float64."""
    if (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and under_autocast(x.device)
        and torch.float64 not in (x.dtype, weight.dtype)
    ):
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), weight.to(dtype)
    return x, weight


def edge_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    act: str = "linear",
    slope: float = 0.2,
    channels_last: bool | None = None,
) -> Tensor:
    """act(conv(x, weight) + bias), fast for images of few channels, and torch's otherwise (see `plan`).

    Args:
        x: (N, C, H, W) float32, float64, bfloat16 or float16, of any layout.
        weight: (K, C, kh, kw) of x's dtype and device. Under autocast both are cast as torch does.
        bias: (K,) of x's dtype (any of them under autocast) and device, or None.
        stride: at least 1, of both axes.
        padding: zeros on each side, at least 0.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's for negative inputs, at least 0.
        channels_last: the layout of y of an "edge" plan; by default channels-last if x or weight is.

    Returns:
        y (N, K, H', W') with H' = (H + 2 padding - kh) // stride + 1.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message
            names it.
        RuntimeError: a third derivative of a smooth activation is asked for.
    """
    x, weight = _under_autocast(x, weight)
    _check(x, weight, 1, stride, padding)
    height, width, kh, kw = *x.shape[2:], *weight.shape[2:]
    extent = (size_of(height, kh, stride, padding), size_of(width, kw, stride, padding))
    if min(extent) < 1:
        raise ValueError(
            f"x {tuple(x.shape)} with padding {padding} is smaller than the kernel of weight "
            f"{tuple(weight.shape)}"
        )
    _check_act(x, weight.size(0), bias, act, slope)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    served = plan(weight, stride, features_size=extent, padding=padding)
    with forgetting(x, weight):
        if forward_mode() or served != "edge":
            if served == "matrix":
                y = _to_points(x, weight)
            else:
                y = convolve(x, weight, stride, padding)
            return y if bias is None and act == "linear" else bias_act(y, bias, act, slope=slope)
        if channels_last is None:
            channels_last = _is_last(x) or _is_last(weight)
        settings = (stride, padding, channels_last)
        negative = {"linear": 1.0, "relu": 0.0, "leaky_relu": float(slope)}.get(act)
        if negative is None:
            return bias_act(_call(_Conv, conv, x, weight, *settings), bias, act, slope=slope)
        if negative == 1.0 and bias is None:
            return _call(_Conv, conv, x, weight, *settings)
        if needs_grad(x, weight, bias):
            return apply(_ConvAct, x, weight, bias, negative, *settings)
        return conv(x, weight, *settings, bias, negative)


def checked_transpose(
    x: Tensor, weight: Tensor, stride: int, padding: int, output_padding: int
) -> tuple[Tensor, Tensor, int, int]:
    """x and weight, cast under autocast, and the result's height and width."""
    x, weight = _under_autocast(x, weight)
    _check(x, weight, 0, stride, padding)
    _check_count("output_padding", output_padding, 0)
    if output_padding >= stride:
        raise ValueError(f"output_padding must be less than stride {stride}, got {output_padding}")
    height, width = (
        (x.size(axis) - 1) * stride - 2 * padding + weight.size(axis) + output_padding
        for axis in (2, 3)
    )
    if height < 1 or width < 1:
        raise ValueError(
            f"padding {padding} leaves nothing of the result, which would be {height} x {width}"
        )
    return x, weight, height, width


def edge_conv_transpose(
    x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0, output_padding: int = 0
) -> Tensor:
    """A transposed convolution that is fast for images of few channels and for 1 x 1 inputs, and
    torch's otherwise (see `plan`).

    Args:
        x: (N, K, H', W') float32, float64, bfloat16 or float16, of any layout.
        weight: (K, C, kh, kw) of x's dtype and device. Under autocast both are cast as torch does.
        stride: at least 1, of both axes.
        padding: cut from each side, at least 0.
        output_padding: added to the lower and the right side, less than stride.

    Returns:
        y (N, C, H, W) with H = (H' - 1) stride - 2 padding + kh + output_padding. It has no bias:
        that joins the activation in `bias_act`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message
            names it.
    """
    x, weight, height, width = checked_transpose(x, weight, stride, padding, output_padding)
    extent = (x.size(2), x.size(3))
    served = plan(weight, stride, features_size=extent, padding=padding + output_padding)
    with forgetting(x, weight):
        if forward_mode() or served == "torch":
            return convolve(x, weight, stride, padding, True, output_padding)
        if served == "matrix":
            return _of_points(x, weight)
        return _call(_Transpose, transpose, x, weight, stride, padding, height, width)


def _to_points(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with 1 x 1 results: every sample is a row of a matrix product."""
    features, _, kh, kw = weight.shape
    x = x[:, :, :kh, :kw]
    if _is_last(x) or _is_last(weight):
        x, weight = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
    rows = x.reshape(-1, math.prod(weight.shape[1:]))
    return (rows @ weight.reshape(features, -1).t())[:, :, None, None]


def _of_points(x: Tensor, weight: Tensor) -> Tensor:
    """A transposed convolution of 1 x 1 inputs: every result is a row of a matrix product."""
    inputs, channels, kh, kw = weight.shape
    points = x.reshape(-1, inputs)
    if _is_last(weight):
        y = _points_times(points, weight.permute(0, 2, 3, 1).reshape(inputs, -1))
        return y.view(-1, kh, kw, channels).permute(0, 3, 1, 2)
    return _points_times(points, weight.reshape(inputs, -1)).view(-1, channels, kh, kw)


# Sums of up to thousands of products of normal numbers in an order of their own: a float64
# reference is not exact either.
_EPSILON = {dtype: 2e-13 if dtype == torch.float64 else 2e-6 for dtype in FLOATS}

register(
    Op(
        name="edge_conv",
        function=edge_conv,
        reference=edge_conv_reference,
        kernels=KERNELS,
        samples=samples(transposed=False),
        bad_calls=bad_calls(transposed=False),
        orders=2,
        epsilon=_EPSILON,
        rows=lambda: [
            *rows(edge_conv, False),
            *rows(edge_conv, False, channels_last=True),
            *wide_rows(),
        ],
    )
)
register(
    Op(
        name="edge_conv_transpose",
        function=edge_conv_transpose,
        reference=edge_conv_transpose_reference,
        kernels=KERNELS,
        samples=samples(transposed=True),
        bad_calls=bad_calls(transposed=True),
        orders=2,
        epsilon=_EPSILON,
        rows=lambda: [
            *rows(edge_conv_transpose, True),
            *rows(edge_conv_transpose, True, channels_last=True),
            *points_rows(edge_conv_transpose),
        ],
    )
)
