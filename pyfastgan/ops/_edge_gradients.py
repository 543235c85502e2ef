"""The derivatives of `edge_conv`: its three kernels are each other's, and one with an activation in it has those gated.

`edge_conv.py` says what is kept for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._common import apply, is_channels_last, needs_grad
from ._edge_kernels import conv, points_product, transpose, weight_gradient
from .bias_act import differentiable_backward


def _is_last(x: Tensor) -> bool:
    return not x.is_contiguous() and is_channels_last(x)


def _weight_alone(*arguments: Any) -> Tensor:
    return weight_gradient(*arguments)[0]


def _call(
    function: type[torch.autograd.Function], kernel: Callable[..., Tensor], *arguments: Any
) -> Tensor:
    a, b = arguments[:2]
    return apply(function, *arguments) if needs_grad(a, b) else kernel(*arguments)


class _Conv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return conv(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, weight, *ctx.settings, _ = inputs
        ctx.save_for_backward(image, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        image, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _call(_Transpose, transpose, dy, weight, *ctx.settings, *image.shape[-2:])
        if ctx.needs_input_grad[1]:
            dw = _call(_Weight, _weight_alone, image, dy, *ctx.settings, *weight.shape[-2:])
        return dx, dw, None, None, None


class _Transpose(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return transpose(*arguments)

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
            df = _call(_Conv, conv, dy, weight, *ctx.settings, ctx.channels_last)
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
            dx = _call(_Transpose, transpose, feature, dw, *ctx.settings, *image.shape[-2:])
        if ctx.needs_input_grad[1]:
            df = _call(_Conv, conv, image, dw, *ctx.settings, ctx.channels_last)
        return dx, df, None, None, None, None


class _ConvAct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        image: Tensor, weight: Tensor, bias: Tensor | None, slope: float, *settings: Any
    ) -> Tensor:
        return conv(image, weight, *settings, bias, slope)

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
                dx = _call(_Transpose, transpose, dy, weight, *ctx.settings, *image.shape[-2:])
            if want_weight:
                dw = _call(_Weight, _weight_alone, image, dy, *ctx.settings, *weight.shape[-2:])
            return dx, dw, db if want_bias else None, None, None, None, None
        gated = (gate, ctx.slope)
        if want_image:
            dx = transpose(dy, weight, *ctx.settings, *image.shape[-2:], *gated)
        if want_weight or want_bias:
            dw, db = weight_gradient(
                image, dy, *ctx.settings, *weight.shape[-2:], *gated, want_bias
            )
        return dx, dw if want_weight else None, db if want_bias else None, None, None, None, None


class _Points(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(points: Tensor, matrix: Tensor) -> Tensor:
        return points_product(points, matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        points, matrix = ctx.saved_tensors
        want_points, want_matrix = ctx.needs_input_grad
        dpoints = dy @ matrix.t() if want_points else None
        return dpoints, _points_times(points.t(), dy) if want_matrix else None


_CPU_KERNELS = _backends.missing("cpu") is None
# Rows of a matrix of which a panel stays in a cache.
_MOST_INPUTS = 1024


def _points_times(points: Tensor, matrix: Tensor) -> Tensor:
    """points @ matrix, by the kernel where there is one."""
    if (
        _backends.choice.name in ("auto", "cpu")
        and _CPU_KERNELS
        and points.device.type == "cpu"
        and points.dtype in (torch.float32, torch.float64)
        and points.size(1) <= _MOST_INPUTS
    ):
        return _call(_Points, points_product, points, matrix)
    return points @ matrix
