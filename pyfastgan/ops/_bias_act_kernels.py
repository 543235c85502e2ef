"""bias_act's operators: their schemas, what tracing sees of them, and the calls of the compiled kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._bias_act_formulas import (
    ACTIVATIONS,
    _backward_backward_reference,
    _backward_reference,
    _cotangent,
    _forward_reference,
    _mask_size,
)
from ._common import (
    TYPE_NUMBER,
    address,
    dense,
    dense_like,
    fresh,
    fresh_like,
    outer_channels_inner,
)
from ._registry import Kernel


def _forward_fake(x: Tensor, bias: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    y = fresh_like(dense(x))
    return y, fresh(x, (_mask_size(y.numel()) if settings[-1] else 0,), torch.uint8)


def _sums_fake(like: Tensor, want_bias: bool) -> Tensor:
    return like.new_empty(like.size(1) if want_bias else 0)


def _backward_fake(
    dy: Tensor, shift: Tensor | None, at: Tensor, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    *_, channels_last, want_bias = settings
    dx = fresh_like(_cotangent(dy, dense(at), channels_last))
    return dx, _sums_fake(dx, want_bias)


def _backward_backward_fake(
    ddx: Tensor, shift: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    return fresh_like(x), fresh_like(x), _sums_fake(x, settings[-1])


def _launch_arguments(
    x: Tensor, channelwise: bool, act: str, slope: float, gain: float, clamp: float | None
) -> tuple[Any, ...]:
    """What every kernel takes after its pointers."""
    dims = outer_channels_inner(x) if channelwise else (1, 1, x.numel())
    return (
        TYPE_NUMBER[x.dtype],
        *dims,
        ACTIVATIONS[act].number,
        slope,
        gain,
        math.nan if clamp is None else clamp,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_mask: bool,
) -> tuple[Tensor, Tensor]:
    x, bias = dense(x), None if bias is None else bias.contiguous()
    y = fresh_like(x)
    mask = fresh(x, (_mask_size(x.numel()) if want_mask else 0,), torch.uint8)
    _backends.native("_cpu").bias_act(
        x.data_ptr(),
        address(bias),
        address(y),
        address(mask if want_mask else None),
        *_launch_arguments(x, bias is not None, act, slope, gain, clamp),
    )
    return y, mask


def _backward_cpu(
    dy: Tensor,
    shift: Tensor | None,
    at: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    channels_last: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor]:
    at = dense(at)
    dy = _cotangent(dy, at, channels_last)
    shift, bias = (None if t is None else t.contiguous() for t in (shift, bias))
    dx, dbias = fresh_like(dy), _sums_fake(dy, want_bias)
    channelwise = want_bias or bias is not None or shift is not None
    masked = at.dtype == torch.uint8
    _backends.native("_cpu").bias_act_backward(
        dy.data_ptr(),
        address(shift),
        None if masked else at.data_ptr(),
        at.data_ptr() if masked else None,
        address(bias),
        address(dx),
        dbias.data_ptr() if want_bias else None,
        *_launch_arguments(dy, channelwise, act, slope, gain, clamp),
    )
    return dx, dbias


def _backward_backward_cpu(
    ddx: Tensor,
    shift: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    ddx, dy = dense_like(ddx, x), dense_like(dy, x)
    shift, bias = (None if t is None else t.contiguous() for t in (shift, bias))
    grad_dy, grad_x, grad_bias = fresh_like(x), fresh_like(x), _sums_fake(x, want_bias)
    channelwise = want_bias or bias is not None or shift is not None
    _backends.native("_cpu").bias_act_backward_backward(
        ddx.data_ptr(),
        address(shift),
        dy.data_ptr(),
        x.data_ptr(),
        address(bias),
        address(grad_dy),
        address(grad_x),
        grad_bias.data_ptr() if want_bias else None,
        *_launch_arguments(x, channelwise, act, slope, gain, clamp),
    )
    return grad_dy, grad_x, grad_bias


_SETTINGS = "str act, float slope, float gain, float? clamp"

_forward = Kernel(
    f"bias_act(Tensor x, Tensor? bias, {_SETTINGS}, bool want_mask) -> (Tensor y, Tensor mask)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    triton="bias_act:bias_act",
)
# `at` is y or the mask for the piecewise-linear activations and x for the others; `channels_last`
# is the order that a mask was made in. `shift` (C,) is added to dy: in a second backward pass,
# where dy is the cotangent of dx, it is the cotangent of the bias gradient.
_backward = Kernel(
    f"bias_act_backward(Tensor dy, Tensor? shift, Tensor at, Tensor? bias, {_SETTINGS}, "
    "bool channels_last, bool want_bias) -> (Tensor dx, Tensor dbias)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    triton="bias_act:bias_act_backward",
)
# For the smooth activations; the second derivative of the others is zero.
_backward_backward = Kernel(
    "bias_act_backward_backward(Tensor ddx, Tensor? shift, Tensor dy, Tensor x, Tensor? bias, "
    f"{_SETTINGS}, bool want_bias) -> (Tensor grad_dy, Tensor grad_x, Tensor grad_bias)",
    reference=_backward_backward_reference,
    fake=_backward_backward_fake,
    cpu=_backward_backward_cpu,
    triton="bias_act:bias_act_backward_backward",
)
