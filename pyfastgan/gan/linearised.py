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

This file has what all layers share; `linearised_affine`, `linearised_maps` and `linearised_norms` have the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Weights = list[Tensor]
Kept = tuple[Tensor, ...]
Maybe = Tensor | None
Found = list[tuple[int, Tensor]]  # gradients of weights, by number
# A tangent of y, for each input the q that starts there, and the weight gradients of the tangents.
Moved = tuple[Tensor, tuple[Maybe, ...], Found]


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
    exact = exact_dtype(dy)
    sums = dy.sum(inner, dtype=exact) if inner else dy.to(exact)
    return sums.sum(0) if a is None else a.to(exact) @ sums


def scaled(dy: Tensor, a: Maybe) -> Tensor:
    return dy if a is None else dy * per_sample(a, dy)


def added(a: Tensor, b: Tensor) -> Tensor:
    """a + b, in the memory of a, which must be nobody else's."""
    return a + b if torch.compiler.is_compiling() or a.dtype != b.dtype else a.add_(b)


def exact_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
