"""A transposed convolution of a network's middle in one GPU kernel: bias, activation, and the moments of batch norm.

The kernel serves where "triton" is chosen by name: it has not been measured beside torch's convolution. Gradients are
those of torch's convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from . import _backends
from ._common import accumulation, apply, dense, forward_mode, fresh, fresh_like, needs_grad
from ._norm_act_formulas import _parts, _update
from ._norm_act_kernels import _backward as norm_backward
from ._registry import Kernel
from .bias_act import bias_act, bias_act_reference
from .edge_conv import _check_act, checked_transpose, plan
from .norm_act import _check, _NormActBackward


def _sizes(x: Tensor, weight: Tensor, stride: int, padding: int, output_padding: int) -> list[int]:
    return [
        (x.size(axis) - 1) * stride - 2 * padding + weight.size(axis) + output_padding
        for axis in (2, 3)
    ]


def _fused_reference(
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
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    y = bias_act_reference(y, None, act, slope=slope)
    none = y.new_empty(0, dtype=accumulation(y.dtype))
    if not want_moments:
        return y, none, none
    var, mean = torch.var_mean(y.to(none.dtype), (0, 2, 3), correction=0)
    return y, mean, var


def _fused_fake(
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
    x = dense(x)
    channels = weight.size(1)
    shape = (x.size(0), channels, *_sizes(x, weight, stride, padding, output_padding))
    y = fresh(x, shape, channels_last=not x.is_contiguous())
    moments = (
        x.new_empty(channels if want_moments else 0, dtype=accumulation(x.dtype)) for _ in "mv"
    )
    return y, *moments  # type: ignore[return-value]


def _given_reference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> Tensor:
    y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    return bias_act_reference(y, None, act, slope=slope)


def _given_fake(x: Tensor, *_: Any) -> Tensor:
    return fresh_like(dense(x))


_fused = Kernel(
    "conv_transpose_act(Tensor x, Tensor weight, Tensor? bias, int stride, int padding, int output_padding, str act, "
    "float slope, bool want_moments) -> (Tensor, Tensor, Tensor)",
    reference=_fused_reference,
    fake=_fused_fake,
    triton="conv_transpose_act:conv_transpose_act",
)
_given = Kernel(
    "batch_norm_given(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, str act, "
    "float slope) -> Tensor",
    reference=_given_reference,
    fake=_given_fake,
    triton="norm_act:batch_norm_given",
)
KERNELS = (_fused, _given)


class _Convolution(torch.autograd.Function):
    """Without an activation; differentiable any number of times, as torch's convolutions are."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings[:2]
        y, mean, var = _fused(x, weight, bias, *settings)
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        dx = F.conv2d(dy, weight, None, *ctx.settings) if want_x else None
        dw = None
        if want_weight:
            dw = conv2d_weight(dy, weight.shape, x, *ctx.settings)
        return dx, dw, dy.sum((0, 2, 3)) if want_bias else None, *(None,) * 6


class _Normed(torch.autograd.Function):
    """A batch norm whose statistics are those of x, and known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None,
        *settings: Any,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, mean, var, weight, bias)
        ctx.settings = ("batch", x.size(1), *settings)
        return _given(x, mean, var, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, mean, var, weight, bias = ctx.saved_tensors
        arguments = (dy, x, mean, var, weight, bias, *ctx.settings)
        if needs_grad(dy, x, weight, bias):
            dx, dweight, dbias = apply(_NormActBackward, *arguments)
        else:
            dx, dweight, dbias = norm_backward(*arguments)
        grads = (None if weight is None else dweight, None if bias is None else dbias)
        return dx, None, None, *grads, None, None, None


def serves(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether "triton" was chosen by name, and torch would convolve."""
    if _backends.choice.name != "triton" or forward_mode() or x.dim() != 4 or weight.dim() != 4:
        return False
    extent = (x.size(2), x.size(3))
    return plan(weight, stride, features_size=extent, padding=padding) == "torch"


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: int,
    act: str,
    slope: float,
    want_moments: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(conv_transpose(x, weight) + bias), and the moments. The activation is a pass of its own where a graph is
    recorded, since its backward needs what it was taken of."""
    x, weight, *_ = checked_transpose(x, weight, stride, padding, output_padding)
    _check_act(x, weight.size(1), bias, act, slope)
    bias = None if bias is None else bias.to(x.dtype)
    settings = (stride, padding, output_padding)
    if not needs_grad(x, weight, bias):
        return _fused(x, weight, bias, *settings, act, float(slope), want_moments)
    own = bias if want_moments else None
    y, *moments = _Convolution.apply(x, weight, own, *settings, "linear", 0.0, want_moments)
    if not want_moments and (bias is not None or act != "linear"):
        y = bias_act(y, bias, act, slope=slope)
    return y, *moments


def batch_normed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: tuple[int, int, int],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    act: str,
    slope: float,
) -> Tensor:
    """The convolution and a batch norm in training, whose statistics the convolution makes."""
    y, mean, var = convolved(x, weight, bias, *conv, "linear", 0.0, True)
    running = (running_mean, running_var)
    _check(y, norm_weight, norm_bias, "batch", groups, *running, True, momentum, eps, act, slope)
    w, b, *_ = _parts(y, norm_weight, norm_bias, "batch", groups, *running, True, eps)
    settings = (float(eps), act, float(slope))
    recorded = needs_grad(y, w, b)
    result: Tensor = (_Normed.apply if recorded else _given)(y, mean, var, w, b, *settings)
    if running_mean is not None and running_var is not None and y.numel():
        _update(running_mean, running_var, mean, var, momentum, y.numel() // y.size(1))
    return result
