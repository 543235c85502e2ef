"""Maps that are linear in each input as layers of `linearised`: convolutions and linear layers,
biases, shapes, sums, resampling, arithmetic and embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyfastgan.gan.linearised import (
    Found,
    Kept,
    Layer,
    Maybe,
    Moved,
    Weights,
    scaled,
    sum_to,
    weighted_sum,
)
from pyfastgan.ops._edge_kernels import conv as _edge_conv
from pyfastgan.ops._edge_kernels import transpose as _edge_transpose
from pyfastgan.ops._edge_kernels import weight_gradient as _edge_weight
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
        mask = (False, True, False)
        return aten.convolution_backward.default(dy, h, weight, None, *self.conv, mask)[1]

    def bias_gradient(self, dy: Tensor, a: Maybe) -> Tensor:
        return weighted_sum(dy, a, -1 if self.conv is None else 1)


@dataclass
class Bias(Layer):
    """x + b, b over dimension 1."""

    bias: int
    joins: bool = False

    aliases: ClassVar[bool] = True

    def weights(self) -> tuple[int, ...]:
        return (self.bias,)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        (x,) = xs
        if self.joins:
            return x, ()
        return x + w[self.bias].to(x.dtype).reshape(-1, *[1] * (x.dim() - 2)), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (dy,)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return ts[0], (), []

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        return [(self.bias, weighted_sum(dy, a))]


@dataclass
class Reshape(Layer):
    """To the shape (N, *shape)."""

    before: tuple[int, ...]
    shape: tuple[int, ...]

    aliases: ClassVar[bool] = True

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return xs[0].reshape(xs[0].size(0), *self.shape), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (dy.reshape(dy.size(0), *self.before),)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return self.forward(w, ts[0])[0], (), []


@dataclass
class Scale(Layer):
    """factor * x + shift, both numbers."""

    factor: float
    shift: float

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        y = xs[0] if self.factor == 1 else xs[0] * self.factor
        return y if self.shift == 0 else y + self.shift, ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (dy if self.factor == 1 else dy * self.factor,)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return self.backward(w, ts[0], kept)[0], (), []  # type: ignore[return-value]


@dataclass
class Sum(Layer):
    """The sum over some dimensions (never the samples') times a factor: sums and means."""

    before: tuple[int, ...]
    dims: tuple[int, ...]
    keepdim: bool
    mean: bool

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        dims = list(self.dims)
        reduce = torch.mean if self.mean else torch.sum
        return reduce(xs[0], dims, self.keepdim), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        if self.mean:
            dy = dy / math.prod([self.before[d - 1] for d in self.dims])
        if not self.keepdim:
            for d in self.dims:
                dy = dy.unsqueeze(d)
        return (dy.expand(-1, *self.before),)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return self.forward(w, ts[0])[0], (), []


@dataclass
class Resample(Layer):
    """Average pooling, or nearest or bilinear resampling: `kind` and the arguments of its operator."""

    before: tuple[int, ...]
    kind: str
    arguments: tuple[Any, ...]

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return getattr(aten, self.kind).default(xs[0], *self.arguments), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        shape = (dy.size(0), *self.before)
        backward = getattr(aten, self.kind + "_backward").default
        if self.kind == "avg_pool2d":
            # Only its shape is looked at.
            like = dy.new_empty(shape)
            return (backward(dy, like, *self.arguments),)
        size, *rest = self.arguments
        return (backward(dy, size, shape, *rest),)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return self.forward(w, ts[0])[0], (), []


@dataclass
class Pad(Layer):
    """Constant padding, of torch.nn.functional.pad."""

    padding: tuple[int, ...]
    value: float

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return torch.constant_pad_nd(xs[0], self.padding, self.value), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (torch.constant_pad_nd(dy, [-p for p in self.padding]),)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return torch.constant_pad_nd(ts[0], self.padding), (), []


@dataclass
class Add(Layer):
    """x + alpha y, of shapes (without the samples) of one length that broadcast."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    alpha: float = 1.0

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return torch.add(xs[0], xs[1], alpha=self.alpha), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        second = dy if self.alpha == 1 else dy * self.alpha
        return sum_to(dy, self.shapes[0]), sum_to(second, self.shapes[1])

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        t, u = ts
        if t is not None and u is not None:
            return torch.add(t, u, alpha=self.alpha), (), []
        found = t
        if u is not None:
            found = u if self.alpha == 1 else u * self.alpha
        assert found is not None
        return found.expand(-1, *torch.broadcast_shapes(*self.shapes)), (), []


@dataclass
class Multiply(Layer):
    """x * y, of shapes (without the samples) of one length that broadcast."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    second_order: ClassVar[bool] = True

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return xs[0] * xs[1], xs

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        x, y = kept
        return sum_to(dy * y, self.shapes[0]), sum_to(dy * x, self.shapes[1])

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert dy is not None
        (x, y), (t, u) = kept, ts
        q = [None if u is None else sum_to(dy * u, self.shapes[0])]
        q += [None if t is None else sum_to(dy * t, self.shapes[1])]
        parts = [x * u] if u is not None else []
        parts += [t * y] if t is not None else []
        return sum(parts[1:], parts[0]), tuple(q), []


@dataclass
class Concatenate(Layer):
    """Along a dimension other than the samples'; `shapes` are the inputs' without them."""

    shapes: tuple[tuple[int, ...], ...]
    dim: int

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return torch.cat(xs, self.dim), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return dy.split([shape[self.dim - 1] for shape in self.shapes], self.dim)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        some = next(t for t in ts if t is not None)
        whole = [
            some.new_zeros(some.size(0), *shape) if t is None else t
            for t, shape in zip(ts, self.shapes, strict=True)
        ]
        return torch.cat(whole, self.dim), (), []


@dataclass
class Look(Layer):
    """Rows of an embedding; its input, the labels, has no cotangent."""

    weight: int
    padding: int

    def weights(self) -> tuple[int, ...]:
        return (self.weight,)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return torch.nn.functional.embedding(xs[0], w[self.weight]), (xs[0],)

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (None,)

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        total = scaled(dy, a)
        rows = w[self.weight].size(0)
        return [
            (
                self.weight,
                aten.embedding_dense_backward.default(total, kept[0], rows, self.padding, False),
            )
        ]


@dataclass
class Broadcast(Layer):
    """A weight as a value of every sample, which `like` (an input) counts."""

    weight: int
    shape: tuple[int, ...]

    aliases: ClassVar[bool] = True

    def weights(self) -> tuple[int, ...]:
        return (self.weight,)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        return w[self.weight].reshape(1, *self.shape).expand(xs[0].size(0), *self.shape), ()

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (None,)

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        return [(self.weight, scaled(dy, a).sum(0).reshape(w[self.weight].shape))]
