"""The layers of a critic as explicit maps: what `critic_step` computes instead of a graph.

With the cotangents delta = dD/dy of a layer's output y, a tangent t of its input and the cotangent q
that the penalty gives to the primal values, every layer has

    forward    x -> y, and what it keeps
    backward   delta -> dD/dx, linear in delta; q takes the same way
    tangent    t -> dy/dx t; where dy/dx depends on x, also the derivative of <delta, dy/dx t> by x,
               which starts a q

and those with weights a gradient of them. `docs/gradient-penalties.md` derives the scheme.

`w` is the list of effective weights of the step, and a layer knows its own by their numbers. All
that a layer keeps has samples in dimension 0, so that a part of the batch is `kept[:n]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyfastgan.ops.bias_act import ACTIVATIONS
from pyfastgan.ops.bias_act import _backward as _act_backward
from pyfastgan.ops.bias_act import _backward_backward as _act_backward_backward
from pyfastgan.ops.bias_act import _forward as _act_forward
from pyfastgan.ops.norm_act import _backward as _norm_backward
from pyfastgan.ops.norm_act import _backward_backward as _norm_backward_backward
from pyfastgan.ops.norm_act import _forward as _norm_forward

aten = torch.ops.aten
Weights = list[Tensor]
Kept = tuple[Tensor, ...]
Maybe = Tensor | None
Found = list[tuple[int, Tensor]]  # gradients of weights, by number
# A tangent of y, for each input the q that starts there, and the weight gradients of the tangents.
Moved = tuple[Tensor, tuple[Maybe, ...], Found]


def sum_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The sum of x over what was broadcast from (N, *shape)."""
    over = [k + 1 for k, size in enumerate(shape) if size == 1 and x.size(k + 1) != 1]
    return x.sum(over, keepdim=True) if over else x


def per_sample(a: Tensor, like: Tensor) -> Tensor:
    return a.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def weighted_sum(dy: Tensor, a: Maybe, dim: int = 1) -> Tensor:
    """The sum of a_i dy_i over all dimensions but `dim`, accumulated in float32 or better."""
    dim %= dy.dim()
    inner = [k for k in range(1, dy.dim()) if k != dim]
    exact = _exact_dtype(dy)
    sums = dy.sum(inner, dtype=exact) if inner else dy.to(exact)
    return sums.sum(0) if a is None else a.to(exact) @ sums


@dataclass
class Layer:
    """One operation: the numbers of its input values and of its output, and its place in the critic."""

    name: str
    inputs: tuple[int, ...]
    output: int

    affine: ClassVar[bool] = False  # y = W h + b of one input: its weight gradient is bilinear
    second_order: ClassVar[bool] = False
    aliases: ClassVar[bool] = False  # the output may be a view of the input

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        raise NotImplementedError

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        raise NotImplementedError

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        """Where the tangents go; `dy` is delta, which layers of second order look at."""
        raise NotImplementedError

    def weights(self) -> tuple[int, ...]:
        return ()

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        """Of the cotangents a_i dy_i. For layers that are not `affine`."""
        return []

    def second(self, w: Weights, q: Tensor, kept: Kept) -> tuple[tuple[Maybe, ...], Found]:
        """`backward` and `weight_gradients` of q."""
        return self.backward(w, q, kept), self.weight_gradients(w, kept, q, None)


@dataclass
class Affine(Layer):
    """Convolution (any dimension, transposed or not) or linear layer.

    `joins` says that the activation behind adds the bias.
    """

    weight: int
    bias: int | None
    # stride, padding, dilation, transposed, output_padding, groups; None: a linear layer
    conv: tuple[Any, ...] | None
    matrix: bool = False  # samples are vectors, so that the bias is over dimension 1
    joins: bool = False

    affine: ClassVar[bool] = True

    def weights(self) -> tuple[int, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def _apply(self, w: Weights, x: Tensor, bias: Maybe) -> Tensor:
        if self.conv is None:
            return torch.nn.functional.linear(x, w[self.weight], bias)
        return aten.convolution.default(x, w[self.weight], bias, *self.conv)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        x = xs[0].to(w[self.weight].dtype)
        return self._apply(w, x, None if self.bias is None or self.joins else w[self.bias]), ()

    def data_gradient(self, w: Weights, dy: Tensor, x: Tensor) -> Tensor:
        weight = w[self.weight]
        dy = dy.to(weight.dtype)
        if self.conv is None:
            return dy @ weight
        # Of x only the shape and the layout matter. The one place for a kernel of image edges.
        mask = (True, False, False)
        return aten.convolution_backward.default(
            dy, x.to(weight.dtype), weight, None, *self.conv, mask
        )[0]

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        return self._apply(w, ts[0].to(w[self.weight].dtype), None), (), []

    def gradient(self, w: Weights, dy: Tensor, h: Tensor) -> Tensor:
        """Of the weight; bilinear in dy and h."""
        weight = w[self.weight]
        dy, h = dy.to(weight.dtype), h.to(weight.dtype)
        if self.conv is None:
            return dy.reshape(-1, dy.size(-1)).t() @ h.reshape(-1, h.size(-1))
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
class Act(Layer):
    """An activation of `pyfastgan.ops.bias_act`, with the bias of the layer before if that `joins`.

    A piecewise-linear one keeps its output, which the next layer keeps anyway: its sign is the
    derivative.
    """

    act: str
    slope: float = 0.2
    gain: float = 1.0
    clamp: float | None = None
    bias: int | None = None

    @property
    def second_order(self) -> bool:  # type: ignore[override]
        return not ACTIVATIONS[self.act].piecewise_linear

    def _bias(self, w: Weights, like: Tensor) -> Maybe:
        return None if self.bias is None else w[self.bias].to(like.dtype)

    def _settings(self) -> tuple[Any, ...]:
        return (self.act, self.slope, self.gain, self.clamp)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        (x,) = xs
        y = _act_forward(x, self._bias(w, x), *self._settings(), False)[0]
        return y, (x,) if self.second_order else (y,)

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        at = kept[0]
        bias = self._bias(w, at) if self.second_order else None
        return (_act_backward(dy.to(at.dtype), None, at, bias, *self._settings(), False, False)[0],)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        (t,) = ts
        assert t is not None
        if not self.second_order:
            return self.backward(w, t, kept)[0], (), []  # type: ignore[return-value]
        assert dy is not None
        x = kept[0]
        t, dy = t.to(x.dtype), dy.to(x.dtype)
        ty, q, _ = _act_backward_backward(
            t, None, dy, x, self._bias(w, x), *self._settings(), False
        )
        return ty, (q,), []


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
        total = _scaled(dy, a)
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
        return [(self.weight, _scaled(dy, a).sum(0).reshape(w[self.weight].shape))]


def _scaled(dy: Tensor, a: Maybe) -> Tensor:
    return dy if a is None else dy * per_sample(a, dy)


@dataclass
class FixedNorm(Layer):
    """Batch norm in evaluation mode: an affine map of each channel, with given statistics."""

    mean: int
    variance: int
    weight: int | None
    bias: int | None
    eps: float

    def weights(self) -> tuple[int, ...]:
        return tuple(k for k in (self.weight, self.bias) if k is not None)

    def _channels(self, x: Tensor, like: Tensor) -> Tensor:
        return x.to(like.dtype).reshape(-1, *[1] * (like.dim() - 2))

    def _spread(self, w: Weights) -> Tensor:
        return (w[self.variance] + self.eps).rsqrt()

    def _factor(self, w: Weights) -> Tensor:
        return self._spread(w) if self.weight is None else self._spread(w) * w[self.weight]

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        (x,) = xs
        factor = self._factor(w)
        shift = -w[self.mean] * factor
        if self.bias is not None:
            shift = shift + w[self.bias]
        return x * self._channels(factor, x) + self._channels(shift, x), (x,)

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (dy * self._channels(self._factor(w), dy),)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        assert ts[0] is not None
        found: Found = []
        if self.weight is not None and dy is not None:
            found = [(self.weight, weighted_sum(dy * ts[0], None) * self._spread(w))]
        ty = self.backward(w, ts[0], kept)[0]
        assert ty is not None
        return ty, (), found

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        found = []
        if self.bias is not None:
            found.append((self.bias, weighted_sum(dy, a)))
        if self.weight is not None:
            (x,) = kept
            total = weighted_sum(dy * (x - self._channels(w[self.mean], x)), a)
            found.append((self.weight, total * self._spread(w)))
        return found


@dataclass
class GroupNorm(Layer):
    """Group, instance or layer norm over channels and positions, with the activation behind it, by
    `pyfastgan.ops.norm_act`, whose kernel of second order is just what tangents need."""

    groups: int
    weight: int | None
    bias: int | None
    eps: float
    act: str = "linear"
    slope: float = 0.2

    second_order: ClassVar[bool] = True

    def weights(self) -> tuple[int, ...]:
        return tuple(k for k in (self.weight, self.bias) if k is not None)

    def _settings(self, w: Weights, x: Tensor) -> tuple[Any, ...]:
        exact = _exact_dtype(x)
        parts = [None if k is None else w[k].to(exact) for k in (self.weight, self.bias)]
        return (*parts, "group", self.groups, self.eps, self.act, self.slope)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        (x,) = xs
        y, mean, var = _norm_forward(x, *self._settings(w, x))
        return y, (x, mean, var)

    def _backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        x = kept[0]
        return _norm_backward(dy.to(x.dtype), *kept, *self._settings(w, x))

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (self._backward(w, dy, kept)[0],)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        (t,) = ts
        assert t is not None
        assert dy is not None
        x = kept[0]
        zeros = torch.zeros(x.size(1), dtype=_exact_dtype(x), device=x.device)
        t, dy = t.to(x.dtype), dy.to(x.dtype)
        settings = self._settings(w, x)
        ty, q, *of_weights = _norm_backward_backward(t, zeros, zeros, dy, *kept, *settings)
        return ty, (q,), self._numbered(of_weights)

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        if not self.weights():
            return []
        return self._numbered(self._backward(w, _scaled(dy, a), kept)[1:])

    def second(self, w: Weights, q: Tensor, kept: Kept) -> tuple[tuple[Maybe, ...], Found]:
        dx, *of_weights = self._backward(w, q, kept)
        return (dx,), self._numbered(of_weights)

    def _numbered(self, gradients: Sequence[Tensor]) -> Found:
        numbers = (self.weight, self.bias)
        return [(k, g) for k, g in zip(numbers, gradients, strict=True) if k is not None]


@dataclass
class LayerNorm(Layer):
    """Layer norm over the last dimensions, in float32 or better.

    With z = (x - mean) / sd over the n values of a row and P u = (u - mean u - z mean(z u)) / sd,
    which is symmetric: dy/dx = weight P, and the derivative of <u, P t> by x is
    -(<z, t> P u + <z, u> P t + <u, P t> z) / (n sd).
    """

    shape: tuple[int, ...]
    weight: int | None
    bias: int | None
    eps: float

    second_order: ClassVar[bool] = True

    def weights(self) -> tuple[int, ...]:
        return tuple(k for k in (self.weight, self.bias) if k is not None)

    def _exact(self, x: Tensor) -> Tensor:
        return x.to(_exact_dtype(x)).contiguous()

    def _get(self, w: Weights, k: int | None) -> Maybe:
        return None if k is None else self._exact(w[k])

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        x = self._exact(xs[0])
        affine = self._get(w, self.weight), self._get(w, self.bias)
        y, mean, spread = aten.native_layer_norm.default(x, self.shape, *affine, self.eps)
        return y.to(xs[0].dtype), (x, mean, spread)

    def _project(self, weight: Maybe, u: Tensor, kept: Kept) -> Tensor:
        """P (weight * u)."""
        x, mean, spread = kept
        mask = [True, False, False]
        return aten.native_layer_norm_backward.default(
            self._exact(u), x, self.shape, mean, spread, weight, None, mask
        )[0]

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        return (self._project(self._get(w, self.weight), dy, kept),)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        t = ts[0]
        assert t is not None
        assert dy is not None
        weight = self._get(w, self.weight)
        t, u = self._exact(t), self._exact(dy)
        u = u if weight is None else u * weight
        pt, pu = self._project(None, t, kept), self._project(None, u, kept)
        x, mean, spread = kept
        z, dims = (x - mean) * spread, list(range(-len(self.shape), 0))

        def over_rows(v: Tensor) -> Tensor:
            return v.sum(dims, keepdim=True)

        total = over_rows(z * t) * pu + over_rows(z * u) * pt + over_rows(u * pt) * z
        q = total * (spread / -math.prod(self.shape))
        found: Found = []
        if self.weight is not None:
            rows = list(range(t.dim() - len(self.shape)))
            found = [(self.weight, (self._exact(dy) * pt).sum(rows))]
        return (pt if weight is None else pt * weight), (q,), found

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        if not self.weights():
            return []
        x, mean, spread = kept
        dy, affine = self._exact(dy), (self._get(w, self.weight), self._get(w, self.bias))
        _, by_weight, by_bias = aten.native_layer_norm_backward.default(
            _scaled(dy, a), x, self.shape, mean, spread, *affine, [False, True, True]
        )
        found = [] if self.bias is None else [(self.bias, by_bias)]
        if self.weight is not None:
            found.append((self.weight, by_weight))
        return found


def _exact_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
