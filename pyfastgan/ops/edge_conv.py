"""edge_conv, edge_conv_transpose: convolutions at the image's edge of a network, where there are few channels.

    edge_conv            y[n, k, p] = act(sum_{c, i} weight[k, c, i] x[n, c, stride p + i - padding] + bias[k])
    edge_conv_transpose  the adjoint of the convolution: what `torch.nn.functional.conv_transpose2d` computes

    edge_conv            x (N, C, H, W), weight (K, C, kh, kw)   -> y (N, K, H', W')
    edge_conv_transpose  x (N, K, H', W'), weight (K, C, kh, kw) -> y (N, C, H, W)

`plan` says what serves a call. "edge" are kernels of our own, for images of few channels C on a CPU,
where torch's convolution reaches a fifth of the machine's matrix rate: a critic's first layer, a
generator's last one, forward, in the gradient of the data (each is the other's) and in that of the
weight. "matrix" is a matrix product, for transposed convolutions of 1 x 1 inputs and for convolutions whose
kernel is as large as the image, with 1 x 1 results. "torch" is
torch's convolution, for everything else: in the middle of a network it runs at that rate already.

For 64 images of 64 pixels, k4 s2 p1, on two AVX-512 cores the rate of a matrix product allows 2.2 ms a pass.
64 -> 3 channels take 2.7 (torch 9.0), that is 0.83 of the rate: a factor of 5 over torch would lie beyond it.
3 -> 64 take 2.5 to 5.4 (torch 11 to 15), its data gradient 2.8 (9.1), its weight gradient 3.1 (3.5: torch is at 0.65
of the rate itself). Small batches keep torch's weight gradient ahead, which is why `gan.critic_step` calls it.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._layout import gated_alike
from .._names import check_choice
from . import _backends
from ._common import (
    TYPE_NUMBER,
    apply,
    check_float,
    dense,
    forward_mode,
    is_channels_last,
    needs_grad,
    under_autocast,
)
from ._recompute import forgetting
from ._registry import FLOATS, BadCall, Kernel, Op, Row, Sample, T, register
from .bias_act import ACTIVATIONS, bias_act, bias_act_reference, differentiable_backward

# The numbers of outputs at a place of the image, channels * stride^2, that the kernels are compiled for.
_OUTPUTS = (1, 2, 3, 4, 8, 12, 16)
_FEW, _MANY = 4, 8
_CPU_KERNELS = _backends.missing("cpu") is None


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


def _size(image: int, kernel: int, stride: int, padding: int) -> int:
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
    sizes = (_size(image.size(axis), weight.size(axis), stride, padding) for axis in (2, 3))
    return torch.empty(
        (image.size(0), weight.size(0), *sizes),
        dtype=image.dtype,
        device=image.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


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
    return feature.new_empty((feature.size(0), weight.size(1), height, width))


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
    tensors: tuple[Tensor | None, ...],
    slope: float,
    image: Tensor,
    feature: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: int,
) -> None:
    getattr(_backends.native("_cpu"), function)(
        *(None if t is None else t.data_ptr() for t in tensors),
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


def _conv_cpu(
    image: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    channels_last: bool,
    bias: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    if not _finite(weight):
        return _conv_reference(image, weight, stride, padding, channels_last, bias, slope)
    image, weight = dense(image), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    feature = _conv_fake(image, weight, stride, padding, channels_last)
    tensors = (image, weight, bias, feature)
    _launch("edge_conv", tensors, slope, image, feature, weight.shape[2:], stride, padding)
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
    tensors = (feature, gate, weight, image)
    kernel = weight.shape[2:]
    _launch("edge_conv_transpose", tensors, slope, image, feature, kernel, stride, padding)
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
    tensors = (image, feature, gate, gradient, bias if want_bias else None)
    _launch("edge_conv_weight", tensors, slope, image, feature, (kh, kw), stride, padding)
    return gradient, bias


# With a leaky ReLU (slope 0: a ReLU, slope 1: nothing): the forward pass takes it of the result, the
# others take its backward pass of the features, where its output `gate` is not positive.
_conv = Kernel(
    "edge_conv(Tensor image, Tensor weight, int stride, int padding, bool channels_last, "
    "Tensor? bias=None, float slope=1.0) -> Tensor",
    reference=_conv_reference,
    fake=_conv_fake,
    cpu=_conv_cpu,
    triton="edge_conv:edge_conv",
)
_transpose = Kernel(
    "edge_conv_transpose(Tensor feature, Tensor weight, int stride, int padding, SymInt height, "
    "SymInt width, Tensor? gate=None, float slope=1.0) -> Tensor",
    reference=_transpose_reference,
    fake=_transpose_fake,
    cpu=_transpose_cpu,
    triton="edge_conv:edge_conv_transpose",
)
_weight = Kernel(
    "edge_conv_weight(Tensor image, Tensor feature, int stride, int padding, SymInt kh, SymInt kw, "
    "Tensor? gate=None, float slope=1.0, bool want_bias=False) -> (Tensor, Tensor)",
    reference=_weight_reference,
    fake=_weight_fake,
    cpu=_weight_cpu,
    triton="edge_conv:edge_conv_weight",
)
KERNELS = (_conv, _transpose, _weight)


def _is_last(x: Tensor) -> bool:
    return is_channels_last(x) and not x.is_contiguous()


def _weight_alone(*arguments: Any) -> Tensor:
    return _weight(*arguments)[0]


def _call(
    function: type[torch.autograd.Function], kernel: Callable[..., Tensor], *arguments: Any
) -> Tensor:
    a, b = arguments[:2]
    return apply(function, *arguments) if needs_grad(a, b) else kernel(*arguments)


class _Conv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _conv(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, weight, *ctx.settings, _ = inputs
        ctx.save_for_backward(image, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        image, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _call(_Transpose, _transpose, dy, weight, *ctx.settings, *image.shape[-2:])
        if ctx.needs_input_grad[1]:
            dw = _call(_Weight, _weight_alone, image, dy, *ctx.settings, *weight.shape[-2:])
        return dx, dw, None, None, None


class _Transpose(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _transpose(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        feature, weight, *ctx.settings, _, _ = inputs
        ctx.channels_last = _is_last(feature)
        ctx.save_for_backward(feature, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        feature, weight = ctx.saved_tensors
        df = dw = None
        if ctx.needs_input_grad[0]:
            df = _call(_Conv, _conv, dy, weight, *ctx.settings, ctx.channels_last)
        if ctx.needs_input_grad[1]:
            dw = _call(_Weight, _weight_alone, dy, feature, *ctx.settings, *weight.shape[-2:])
        return df, dw, None, None, None, None


class _Weight(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _weight_alone(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, feature, *ctx.settings, _, _ = inputs
        ctx.channels_last = _is_last(feature)
        ctx.save_for_backward(image, feature)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Any, ...]:
        image, feature = ctx.saved_tensors
        dx = df = None
        if ctx.needs_input_grad[0]:
            dx = _call(_Transpose, _transpose, feature, dw, *ctx.settings, *image.shape[-2:])
        if ctx.needs_input_grad[1]:
            df = _call(_Conv, _conv, image, dw, *ctx.settings, ctx.channels_last)
        return dx, df, None, None, None, None


class _ConvAct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        image: Tensor, weight: Tensor, bias: Tensor | None, slope: float, *settings: Any
    ) -> Tensor:
        return _conv(image, weight, *settings, bias, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, weight, _, ctx.slope, *ctx.settings, _ = inputs
        ctx.save_for_backward(image, weight, None if ctx.slope == 1.0 else output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        image, weight, gate = ctx.saved_tensors
        want_image, want_weight, want_bias = ctx.needs_input_grad[:3]
        dx = dw = db = None
        if needs_grad(dy, image, weight):
            # To be differentiated again: step by step.
            if gate is None:
                db = dy.sum((0, 2, 3)) if want_bias else None
            else:
                settings = ("leaky_relu", ctx.slope, 1.0, None, False, want_bias)
                dy, db = differentiable_backward(dy, None, gate, None, *settings)
            if want_image:
                dx = _call(_Transpose, _transpose, dy, weight, *ctx.settings, *image.shape[-2:])
            if want_weight:
                dw = _call(_Weight, _weight_alone, image, dy, *ctx.settings, *weight.shape[-2:])
            return dx, dw, db if want_bias else None, None, None, None, None
        gated = (gate, ctx.slope)
        if want_image:
            dx = _transpose(dy, weight, *ctx.settings, *image.shape[-2:], *gated)
        if want_weight or want_bias:
            dw, db = _weight(image, dy, *ctx.settings, *weight.shape[-2:], *gated, want_bias)
        return dx, dw if want_weight else None, db if want_bias else None, None, None, None, None


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
    if isinstance(x, Tensor) and isinstance(weight, Tensor):
        kind = x.device.type
        if under_autocast(x.device) and torch.float64 not in (x.dtype, weight.dtype):
            dtype = torch.get_autocast_dtype(kind)
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
    for axis in (2, 3):
        if _size(x.size(axis), weight.size(axis), stride, padding) < 1:
            raise ValueError(
                f"x {tuple(x.shape)} with padding {padding} is smaller than the kernel of weight "
                f"{tuple(weight.shape)}"
            )
    _check_act(x, weight.size(0), bias, act, slope)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    extent = tuple(_size(x.size(axis), weight.size(axis), stride, padding) for axis in (2, 3))
    served = plan(weight, stride, features_size=extent, padding=padding)  # type: ignore[arg-type]
    with forgetting(x, weight):
        if forward_mode() or served != "edge":
            if served == "matrix":
                y = _to_points(x, weight)
            else:
                y = F.conv2d(x, weight, None, stride, padding)
            return y if bias is None and act == "linear" else bias_act(y, bias, act, slope=slope)
        if channels_last is None:
            channels_last = _is_last(x) or _is_last(weight)
        settings = (stride, padding, channels_last)
        negative = {"linear": 1.0, "relu": 0.0, "leaky_relu": float(slope)}.get(act)
        if negative is None:
            return bias_act(_call(_Conv, _conv, x, weight, *settings), bias, act, slope=slope)
        if negative == 1.0 and bias is None:
            return _call(_Conv, _conv, x, weight, *settings)
        if needs_grad(x, weight, bias):
            return apply(_ConvAct, x, weight, bias, negative, *settings)
        return _conv(x, weight, *settings, bias, negative)


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
            settings = {"stride": stride, "padding": padding, "output_padding": output_padding}
            return edge_conv_transpose_reference(x, weight, **settings)
        if served == "matrix":
            return _of_points(x, weight)
        return _call(_Transpose, _transpose, x, weight, stride, padding, height, width)


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
        y = points @ weight.permute(0, 2, 3, 1).reshape(inputs, -1)
        return y.view(-1, kh, kw, channels).permute(0, 3, 1, 2)
    return (points @ weight.reshape(inputs, -1)).view(-1, channels, kh, kw)


def _samples(transposed: bool) -> tuple[Sample, ...]:
    def sample(
        label: str, image: tuple[int, ...], weight: tuple[int, ...], **settings: Any
    ) -> Sample:
        last = settings.pop("last", False)
        k, _, kh, kw = weight
        shape = image
        if transposed:
            s, p = settings["stride"], settings["padding"]
            sizes = (_size(image[2], kh, s, p), _size(image[3], kw, s, p))
            shape = (image[0], k, *sizes)
            extra = (image[2] + 2 * p - kh) % s
            settings = settings | ({"output_padding": extra} if extra else {})
        return Sample(label, (T(shape, channels_last=last), T(weight, scale=0.1)), settings)

    if transposed:
        return (
            # One channel, and a second vector in a row, over several pieces of work.
            sample("k3 s1 p1", (17, 1, 3, 38), (17, 1, 3, 3), stride=1, padding=1),
            # A kernel that is not square, and nothing cut.
            sample("channels last", (2, 2, 10, 8), (9, 2, 4, 2), stride=2, padding=0, last=True),
            sample("no samples", (0, 3, 4, 4), (8, 3, 4, 4), stride=2, padding=1),
        )
    return (
        # Rows that are not whole vectors; a number of features that is not whole tiles.
        sample("k4 s2 p1", (3, 3, 10, 8), (9, 3, 4, 4), stride=2, padding=1),
        # A whole square of 16 to transpose, and the ends of others.
        sample(
            "channels last",
            (2, 1, 5, 39),
            (19, 1, 4, 2),
            stride=2,
            padding=1,
            last=True,
            bias=T((19,)),
            act="leaky_relu",
        ),
        sample("relu", (2, 2, 6, 5), (8, 2, 3, 3), bias=T((8,)), act="relu"),
    )


def _bad_calls(transposed: bool) -> tuple[BadCall, ...]:
    x, w = torch.zeros(2, 8, 6, 6), torch.zeros(8, 8, 4, 4)
    common = (
        BadCall("not a tensor", ([1.0], w), {}, TypeError, "x must be a tensor, got list"),
        BadCall("integers", (x.int(), w), {}, TypeError, "x must be float32"),
        BadCall("three dimensions", (x[0], w), {}, ValueError, "x must have 4 dimensions"),
        BadCall("a flat weight", (x, w[0]), {}, ValueError, "weight must have 4 dimensions"),
        BadCall("no kernel", (x, w[:, :, :0]), {}, ValueError, "weight must have elements"),
        BadCall("other channels", (x[:, :7], w), {}, ValueError, "weight must have 7 in dimension"),
        BadCall("mixed dtypes", (x, w.double()), {}, TypeError, "weight must have the dtype of x"),
        BadCall("mixed devices", (x, w.to("meta")), {}, ValueError, "weight must be on cpu"),
        BadCall("no stride", (x, w), {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        BadCall("a real stride", (x, w), {"stride": 1.5}, TypeError, "stride must be an integer"),
        BadCall("negative padding", (x, w), {"padding": -1}, ValueError, "padding must be at least 0"),
    )  # fmt: skip
    if transposed:
        return (
            *common,
            BadCall("a large output padding", (x, w), {"stride": 2, "output_padding": 2}, ValueError,
                    "output_padding must be less than stride 2, got 2"),
            BadCall("nothing left", (x, w), {"padding": 5}, ValueError, "padding 5 leaves nothing"),
            BadCall("no rows", (x[:, :, :0], w), {}, ValueError, "x must have channels, rows"),
        )  # fmt: skip
    return (
        *common,
        BadCall(
            "a wide bias", (x, w, torch.zeros(9)), {}, ValueError, r"bias must have shape \(8,\)"
        ),
        BadCall(
            "a double bias",
            (x, w, torch.zeros(8).double()),
            {},
            TypeError,
            "bias must have the dtype",
        ),
        BadCall("unknown activation", (x, w), {"act": "rely"}, ValueError, "did you mean 'relu'"),
        BadCall("negative slope", (x, w), {"slope": -1.0}, ValueError, "slope must be finite"),
        BadCall(
            "no rows",
            (x[:, :, :0], w),
            {"padding": 3},
            ValueError,
            "x must have channels, rows and columns",
        ),
        BadCall("a small image", (x[:, :, :3], w), {}, ValueError, "is smaller than the kernel"),
    )


def _convolution_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    axes = ((stride,) * 2, (padding,) * 2, (1, 1), transposed, (0, 0), 1)
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *axes, mask)


def _rows(transposed: bool, channels_last: bool = False) -> Sequence[Row]:
    batch, features, channels, size = 64, 64, 3, 64
    flops = 2 * batch * features * channels * size * size * 4

    def make(what: str) -> Callable[[], dict[str, Callable[[], Any]]]:
        def contestants() -> dict[str, Callable[[], Any]]:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            image = torch.randn(batch, channels, size, size).contiguous(memory_format=layout)
            feature = torch.randn(batch, features, size // 2, size // 2)
            feature = feature.contiguous(memory_format=layout)
            w = torch.randn(features, channels, 4, 4)
            x, dy = (feature, image) if transposed else (image, feature)
            run = edge_conv_transpose if transposed else edge_conv
            eager = F.conv_transpose2d if transposed else F.conv2d
            masks = {
                "data gradient": (True, False, False),
                "weight gradient": (False, True, False),
                "bwd": (True, True, False),
            }
            if what == "fwd":
                return {
                    "ours": lambda: run(x, w, stride=2, padding=1),
                    "eager": lambda: eager(x, w, None, 2, 1),
                }
            wanted = (*([x] if masks[what][0] else []), *([w] if masks[what][1] else []))
            for t in wanted:
                t.requires_grad_()
            y = run(x, w, stride=2, padding=1)
            return {
                "ours": lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True),
                "eager": lambda: _convolution_backward(dy, x, w, 2, 1, transposed, masks[what]),
            }

        return contestants

    name = "edge_conv_transpose 64->3" if transposed else "edge_conv 3->64"
    shape = f"{batch} images of {size} px, k4 s2 p1" + (", channels last" if channels_last else "")
    kinds = (
        {"fwd": 1, "bwd": 2} if transposed else {"fwd": 1, "data gradient": 1, "weight gradient": 1}
    )
    bytes = 4 * batch * size * size * (channels + features / 4)
    return [
        Row(f"{name} {what}", shape, make(what), bytes=bytes, flops=n * flops)
        for what, n in kinds.items()
    ]


def _points_rows() -> Sequence[Row]:
    def make(backward: bool) -> Callable[[], dict[str, Callable[[], Any]]]:
        def contestants() -> dict[str, Callable[[], Any]]:
            x = torch.randn(64, 100, 1, 1, requires_grad=backward)
            w = torch.randn(100, 512, 4, 4, requires_grad=backward)
            dy = torch.randn(64, 512, 4, 4)
            if not backward:
                return {
                    "ours": lambda: edge_conv_transpose(x, w),
                    "eager": lambda: F.conv_transpose2d(x, w),
                }
            y, z = edge_conv_transpose(x, w), F.conv_transpose2d(x, w)
            return {
                "ours": lambda: torch.autograd.grad(y, (x, w), dy, retain_graph=True),
                "eager": lambda: torch.autograd.grad(z, (x, w), dy, retain_graph=True),
            }

        return contestants

    sizes = 64 * 100, 100 * 512 * 16, 64 * 512 * 16
    return [
        Row(
            f"edge_conv_transpose 100->512 {('fwd', 'bwd')[backward]}",
            "64 points, k4",
            make(backward),
            bytes=4 * (2 if backward else 1) * sum(sizes),
            flops=(2 if backward else 1) * 2 * 64 * 100 * 512 * 16,
        )
        for backward in (False, True)
    ]


# Sums of up to thousands of products of normal numbers in an order of their own: a float64
# reference is not exact either.
_EPSILON = {dtype: 2e-13 if dtype == torch.float64 else 2e-6 for dtype in FLOATS}

register(
    Op(
        name="edge_conv",
        function=edge_conv,
        reference=edge_conv_reference,
        kernels=KERNELS,
        samples=_samples(transposed=False),
        bad_calls=_bad_calls(transposed=False),
        orders=2,
        epsilon=_EPSILON,
        rows=lambda: [*_rows(False), *_rows(False, channels_last=True)],
    )
)
register(
    Op(
        name="edge_conv_transpose",
        function=edge_conv_transpose,
        reference=edge_conv_transpose_reference,
        kernels=KERNELS,
        samples=_samples(transposed=True),
        bad_calls=_bad_calls(transposed=True),
        orders=2,
        epsilon=_EPSILON,
        rows=lambda: [*_rows(True), *_rows(True, channels_last=True), *_points_rows()],
    )
)
