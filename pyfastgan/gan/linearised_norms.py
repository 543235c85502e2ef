"""Norms and activations as layers of `linearised`."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    exact_dtype,
    scaled,
    weighted_sum,
)
from pyfastgan.ops.bias_act import ACTIVATIONS
from pyfastgan.ops.bias_act import _backward as _act_backward
from pyfastgan.ops.bias_act import _backward_backward as _act_backward_backward
from pyfastgan.ops.bias_act import _forward as _act_forward
from pyfastgan.ops.norm_act import _backward as _norm_backward
from pyfastgan.ops.norm_act import _backward_backward as _norm_backward_backward
from pyfastgan.ops.norm_act import _forward as _norm_forward

aten = torch.ops.aten


@dataclass
class Act(Layer):
    """An activation of `pyfastgan.ops.bias_act`, with the bias of the layer before if that `joins`.

    A piecewise-linear one keeps its output, which the next layer keeps anyway: its sign is the
    derivative. `owns` says of its cotangent and its tangent whether nobody else looks at them, `joins` that
    the layer before does the forward pass.
    """

    act: str
    slope: float = 0.2
    gain: float = 1.0
    clamp: float | None = None
    bias: int | None = None
    owns: tuple[bool, bool] = (False, False)
    joins: bool = False

    @property
    def second_order(self) -> bool:  # type: ignore[override]
        return not ACTIVATIONS[self.act].piecewise_linear

    def _bias(self, w: Weights, like: Tensor) -> Maybe:
        return None if self.bias is None else w[self.bias].to(like.dtype)

    def _settings(self) -> tuple[Any, ...]:
        return (self.act, self.slope, self.gain, self.clamp)

    def forward(self, w: Weights, *xs: Tensor) -> tuple[Tensor, Kept]:
        (x,) = xs
        if self.joins:
            return x, (x,)
        y = _act_forward(x, self._bias(w, x), *self._settings(), False)[0]
        return y, (x,) if self.second_order else (y,)

    def backward(self, w: Weights, dy: Tensor, kept: Kept) -> tuple[Maybe, ...]:
        at = kept[0]
        bias = self._bias(w, at) if self.second_order else None
        if self.owns[0] and self._in_place(dy, at):
            return (self._masked(dy, at),)
        return (_act_backward(dy.to(at.dtype), None, at, bias, *self._settings(), False, False)[0],)

    @property
    def plain_slope(self) -> float | None:
        """Of a leaky ReLU and nothing else."""
        if self.gain != 1.0 or self.clamp is not None:
            return None
        return {"relu": 0.0, "leaky_relu": self.slope}.get(self.act)

    def _in_place(self, dy: Tensor, y: Tensor) -> bool:
        alike = dy.dtype == y.dtype and dy.stride() == y.stride()
        return self.plain_slope is not None and alike and not torch.compiler.is_compiling()

    def _masked(self, dy: Tensor, y: Tensor) -> Tensor:
        """dy times the derivative, in dy, which is in a cache, while new memory would be in none."""
        return aten.leaky_relu_backward.grad_input(dy, y, self.plain_slope, True, grad_input=dy)

    def tangent(self, w: Weights, ts: tuple[Maybe, ...], kept: Kept, dy: Maybe) -> Moved:
        (t,) = ts
        assert t is not None
        if not self.second_order:
            if self.owns[1] and self._in_place(t, kept[0]):
                return self._masked(t, kept[0]), (), []
            ty = _act_backward(
                t.to(kept[0].dtype), None, kept[0], None, *self._settings(), False, False
            )
            return ty[0], (), []
        assert dy is not None
        x = kept[0]
        t, dy = t.to(x.dtype), dy.to(x.dtype)
        ty, q, _ = _act_backward_backward(
            t, None, dy, x, self._bias(w, x), *self._settings(), False
        )
        return ty, (q,), []


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
        exact = exact_dtype(x)
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
        zeros = torch.zeros(x.size(1), dtype=exact_dtype(x), device=x.device)
        t, dy = t.to(x.dtype), dy.to(x.dtype)
        settings = self._settings(w, x)
        ty, q, *of_weights = _norm_backward_backward(t, zeros, zeros, dy, *kept, *settings)
        return ty, (q,), self._numbered(of_weights)

    def weight_gradients(self, w: Weights, kept: Kept, dy: Tensor, a: Maybe) -> Found:
        if not self.weights():
            return []
        return self._numbered(self._backward(w, scaled(dy, a), kept)[1:])

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
        return x.to(exact_dtype(x)).contiguous()

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
            scaled(dy, a), x, self.shape, mean, spread, *affine, [False, True, True]
        )
        found = [] if self.bias is None else [(self.bias, by_bias)]
        if self.weight is not None:
            found.append((self.weight, by_weight))
        return found
