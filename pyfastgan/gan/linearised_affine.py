"""Convolutions and linear layers as a layer of `linearised`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyfastgan.gan.linearised import (
    Kept,
    Layer,
    Maybe,
    Moved,
    Weights,
    weighted_sum,
)
from pyfastgan.ops._edge_kernels import conv as _edge_conv
from pyfastgan.ops._edge_kernels import transpose as _edge_transpose
from pyfastgan.ops._edge_kernels import weight_gradient as _edge_weight
from pyfastgan.ops._wide_conv import serves as _wide_serves
from pyfastgan.ops._wide_conv import weight_gradient as _wide_weight
from pyfastgan.ops.edge_conv import plan as _served_by

aten = torch.ops.aten


def _rows(x: Tensor) -> Tensor:
    """Samples as rows, channels innermost: a view of channels-last memory."""
    return x.movedim(1, -1).flatten(1)


def _from_rows(rows: Tensor, like: Tensor) -> Tensor:
    shape = (len(rows), *like.shape[2:], like.size(1))
    return rows.reshape(shape).movedim(-1, 1)


@dataclass
class Affine(Layer):
    """Convolution (any dimension, transposed or not) or linear layer.

    `joins` says that the activation behind adds the bias. With a `slope` the forward pass is that of the
    leaky ReLU behind, too.
    """

    weight: int
    bias: int | None
    # stride, padding, dilation, transposed, output_padding, groups; None: a linear layer
    conv: tuple[Any, ...] | None
    matrix: bool = False  # samples are vectors, so that the bias is over dimension 1
    joins: bool = False
    slope: float | None = None

    affine: ClassVar[bool] = True

    def weights(self) -> tuple[int, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def transposed(self) -> bool:
        return self.conv is not None and bool(self.conv[3])

    def _edge(self, weight: Tensor) -> tuple[int, int] | None:
        """Stride and padding, where the layer is at an image's edge and `edge_conv` has kernels for it."""
        if self.conv is None or weight.dim() != 4:
            return None
        stride, padding, dilation, _, _, groups = self.conv
        if any(len(set(along)) > 1 for along in (stride, padding)) or max(dilation) * groups > 1:
            return None
        # Of results of one place, which the kernels serve too, a size that is none asks nothing.
        served = _served_by(weight, stride[0], features_size=(0, 0))
        return (stride[0], padding[0]) if served == "edge" else None

    def _whole(self, size: torch.Size, weight: Tensor) -> bool:
        """Whether the kernel covers all of its input, as the last one of a critic does: then it is a
        matrix, whose products take a tenth of the convolution's time."""
        if self.conv is None or self.transposed or size[2:] != weight.shape[2:]:
            return False
        _, padding, dilation, _, _, groups = self.conv
        return max(padding) == 0 and max(dilation) * groups == 1

    def _apply(self, w: Weights, x: Tensor, bias: Maybe) -> Tensor:
        weight = w[self.weight]
        if self.conv is None:
            return torch.nn.functional.linear(x, weight, bias)
        if self._whole(x.shape, weight):
            y = torch.nn.functional.linear(_rows(x), _rows(weight), bias)
            return y.reshape(*y.shape, *[1] * (x.dim() - 2))
        edge = self._edge(weight)
        if edge is None:
            return aten.convolution.default(x, weight, bias, *self.conv)
        if not self.transposed:
            # What follows is faster so, and one channel alone does not show its layout.
            return _edge_conv(x, weight, *edge, True, bias)
        size = (
            (x.size(k) - 1) * edge[0] - 2 * edge[1] + weight.size(k) + self.conv[4][k - 2]
            for k in (2, 3)
        )
        y = _edge_transpose(x, weight, *edge, *size)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        weight = w[self.weight]
        x, bias = xs[0].to(weight.dtype), None
        if self.bias is not None and not self.joins:
            bias = w[self.bias].to(weight.dtype)
        if self.slope is None:
            return self._apply(w, x, bias), ()
        edge = self._edge(weight)
        if edge is not None and not self.transposed:
            return _edge_conv(x, weight, *edge, True, bias, self.slope), ()
        y = self._apply(w, x, bias)
        if torch.compiler.is_compiling():
            return torch.nn.functional.leaky_relu(y, self.slope), ()
        return torch.nn.functional.leaky_relu_(y, self.slope), ()

    def data_gradient(self, w: Weights, dy: Tensor, x: Tensor) -> Tensor:
        weight = w[self.weight]
        dy = dy.to(weight.dtype)
        if self.conv is None:
            return dy @ weight
        if self._whole(x.shape, weight):
            return _from_rows(dy.flatten(1) @ _rows(weight), weight)
        edge = self._edge(weight)
        if edge is None:
            # Of x only the shape and the layout matter.
            mask = (True, False, False)
            return aten.convolution_backward.default(
                dy, x.to(weight.dtype), weight, None, *self.conv, mask
            )[0]
        if self.transposed:
            return _edge_conv(dy, weight, *edge, True)
        return _edge_transpose(dy, weight, *edge, *x.shape[2:])

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return self._apply(w, ts[0].to(w[self.weight].dtype), None), (), []

    def gradient(self, w: Weights, dy: Tensor, h: Tensor) -> Tensor:
        """Of the weight; bilinear in dy and h."""
        weight = w[self.weight]
        dy, h = dy.to(weight.dtype), h.to(weight.dtype)
        if self.conv is None:
            return dy.reshape(-1, dy.size(-1)).t() @ h.reshape(-1, h.size(-1))
        if self._whole(h.shape, weight):
            return _from_rows(dy.flatten(1).t() @ _rows(h), weight)
        edge = self._edge(weight)
        if edge is not None:
            image, features = (dy, h) if self.transposed else (h, dy)
            return _edge_weight(image, features, *edge, *weight.shape[2:])[0]
        if weight.dim() == 4:
            image, features = (dy, h) if self.transposed else (h, dy)
            if _wide_serves(weight, image.shape[2:], self.conv):
                return _wide_weight(image, features, not weight.is_contiguous())
        mask = (False, True, False)
        return aten.convolution_backward.default(dy, h, weight, None, *self.conv, mask)[1]

    def bias_gradient(self, dy: Tensor, a: Maybe) -> Tensor:
        return weighted_sum(dy, a, -1 if self.conv is None else 1)
