"""Maps without a kernel, linear in each input, as layers of `linearised`: biases, shapes, sums, resampling, arithmetic
and embeddings.
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

aten = torch.ops.aten


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
