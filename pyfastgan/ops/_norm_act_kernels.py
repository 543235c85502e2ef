"""norm_act's operators: their schemas, what tracing sees of them, and the calls of the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._common import TYPE_NUMBER, accumulation, address, dense, dense_like, fresh_like
from ._norm_act_formulas import (
    _backward_backward_reference,
    _backward_reference,
    _forward_reference,
    _statistics_shape,
)
from ._registry import Kernel
from .bias_act import ACTIVATIONS


def _forward_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, groups: int, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = _statistics_shape(x, norm, groups), accumulation(x.dtype)
    mean, var = x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
    return fresh_like(dense(x)), mean, var


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation(x.dtype)
    return x.new_empty(x.size(1), dtype=dtype), x.new_empty(x.size(1), dtype=dtype)


def _backward_fake(dy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fresh_like(dense(x)), *_sums(x)


def _backward_backward_fake(
    ddx: Tensor, ddweight: Tensor, ddbias: Tensor, dy: Tensor, x: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return fresh_like(dense(x)), fresh_like(dense(x)), *_sums(x)


_KERNEL_NORMS = ("batch", "group", "affine")  # numbered as in csrc/cpu/norm_act_loops.h


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _call_cpu(
    kernel: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    x: Tensor,
    norm: str,
    groups: int,
    eps: float,
    act: str,
    slope: float,
) -> None:
    """Runs a kernel over x, which is dense and not empty."""
    n, c, *space = x.shape
    inner = math.prod(space)
    getattr(_backends.native("_cpu"), kernel)(
        *(address(t) for t in inputs),
        *(address(t) for t in outputs),
        TYPE_NUMBER[x.dtype],
        n,
        c,
        inner,
        groups,
        _KERNEL_NORMS.index(norm),
        inner == 1 or not x.is_contiguous(),
        eps,
        ACTIVATIONS[act].number,
        slope,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    y, mean, var = _forward_fake(x, weight, bias, *settings)
    if x.numel() == 0:
        return y, mean.zero_(), var.zero_()
    weight, bias = _contiguous(weight, bias)
    _call_cpu("norm_act", (x, weight, bias), (y, mean, var), x, *settings)
    return y, mean, var


def _backward_cpu(dy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    dx, dweight, dbias = _backward_fake(dy, x)
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_()
    inputs = (dense_like(dy, x), x, *_contiguous(*arguments[:4]))
    outputs = dx, dweight, dbias
    _call_cpu("norm_act_backward", inputs, outputs, x, *arguments[4:])
    return outputs


def _backward_backward_cpu(
    ddx: Tensor, ddweight: Tensor, ddbias: Tensor, dy: Tensor, x: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = dense(x)
    grad_dy, grad_x, grad_weight, grad_bias = _backward_backward_fake(ddx, ddweight, ddbias, dy, x)
    if x.numel() == 0:
        return grad_dy, grad_x, grad_weight.zero_(), grad_bias.zero_()
    vectors = _contiguous(ddweight, ddbias)
    inputs = (dense_like(ddx, x), *vectors, dense_like(dy, x), x, *_contiguous(*arguments[:4]))
    outputs = (grad_dy, grad_x, grad_weight, grad_bias)
    _call_cpu("norm_act_backward_backward", inputs, outputs, x, *arguments[4:])
    return outputs


# weight, bias, mean and var are float32 for half types, else of x's dtype. norm is "batch" (groups = C; mean and var
# of shape (C,)), "group" (mean and var of shape (N, groups)) or "affine" (none: xhat is x).
_PARAMETERS = "Tensor? weight, Tensor? bias, str norm, int groups, float eps, str act, float slope"

_forward = Kernel(
    f"norm_act(Tensor x, {_PARAMETERS}) -> (Tensor y, Tensor mean, Tensor var)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    triton="norm_act:norm_act",
)
_backward = Kernel(
    f"norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, {_PARAMETERS}) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    triton="norm_act:norm_act_backward",
)
_backward_backward = Kernel(
    "norm_act_backward_backward(Tensor ddx, Tensor ddweight, Tensor ddbias, Tensor dy, Tensor x, Tensor mean, "
    f"Tensor var, {_PARAMETERS}) -> (Tensor grad_dy, Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    reference=_backward_backward_reference,
    fake=_backward_backward_fake,
    cpu=_backward_backward_cpu,
    triton="norm_act:norm_act_backward_backward",
)
