"""What gradient penalties are made of: squared norms of samples, a penalty's gradient, and points between samples.

A penalty looks at the norm |g| of each sample of g alone:

    two-sided   (|g| - 1)^2
    one-sided   max(0, |g| - 1)^2
    half        |g|^2 / 2

so its derivative by g is f(|g|) g. Triton kernels serve GPUs; elsewhere these are torch's operations. Norms and
penalties are float32 for half-precision gradients, and of the gradients' dtype elsewhere. Deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import accumulation, dense, dense_like, fresh_like, needs_grad
from ._registry import Kernel
from .random import _prepare, _uniform


class Shape(NamedTuple):
    """value: |g|^2 (N,) -> the penalty (N,), differentiable twice. factor: |g| (N,) -> f(|g|), 0 where |g| = 0."""

    value: Callable[[Tensor], Tensor]
    factor: Callable[[Tensor], Tensor]


def _norm(squared: Tensor) -> Tensor:
    """The square root, whose derivative at 0 is 0 and not infinite."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), squared)


def _two_sided(squared: Tensor) -> Tensor:
    return (_norm(squared) - 1).square()


def _two_sided_factor(norm: Tensor) -> Tensor:
    # With 1 in the place of 0 the factor is 0 there.
    return 2 - 2 / torch.where(norm == 0, 1, norm)


def _one_sided(squared: Tensor) -> Tensor:
    return torch.relu(_norm(squared) - 1).square()


def _one_sided_factor(norm: Tensor) -> Tensor:
    return torch.relu(_two_sided_factor(norm))


def _half(squared: Tensor) -> Tensor:
    return 0.5 * squared


SHAPES = {
    "two-sided": Shape(_two_sided, _two_sided_factor),
    "one-sided": Shape(_one_sided, _one_sided_factor),
    "half": Shape(_half, torch.ones_like),
}


def _each(factors: Tensor, g: Tensor) -> Tensor:
    return factors.reshape(-1, *[1] * (g.dim() - 1))


def _products_reference(a: Tensor, b: Tensor | None) -> Tensor:
    a = a.to(accumulation(a.dtype))
    return (a.square() if b is None else a * b).reshape(len(a), -1).sum(1)


def _products_fake(a: Tensor, b: Tensor | None) -> Tensor:
    return a.new_empty(a.size(0), dtype=accumulation(a.dtype))


def _scale_reference(g: Tensor, factors: Tensor) -> Tensor:
    g = dense(g)
    return (g * _each(factors, g)).to(g.dtype)


def _scale_fake(g: Tensor, factors: Tensor) -> Tensor:
    return fresh_like(dense(g))


def _gradient_reference(g: Tensor, shape: str, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    # Over all dimensions at once: flattening would copy what is channels-last.
    inner = list(range(1, g.ndim))
    wide = accumulation(g.dtype)
    norms = torch.linalg.vector_norm(g, dim=inner, dtype=wide) if inner else g.to(wide).abs()
    factor = (weight / len(g)) * SHAPES[shape].factor(norms)
    slope = (g * _each(factor, g)).to(g.dtype)
    return weight * SHAPES[shape].value(norms.square()).mean(), slope, norms


def _gradient_fake(g: Tensor, shape: str, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    norms = _products_fake(g, None)
    return norms.new_empty(()), fresh_like(dense(g)), norms


def _between_reference(
    fake: Tensor, real: Tensor, seed: Tensor, stream: int, sample_offset: int
) -> Tensor:
    share = _uniform(seed, (len(real), 1), stream, sample_offset, real.dtype)
    real = dense(real)
    return torch.lerp(dense_like(fake, real), real, _each(share, real))


def _between_fake(
    fake: Tensor, real: Tensor, seed: Tensor, stream: int, sample_offset: int
) -> Tensor:
    return fresh_like(dense(real))


_products = Kernel(
    "row_products(Tensor a, Tensor? b) -> Tensor",
    reference=_products_reference,
    fake=_products_fake,
    triton="penalty:row_products",
)
_scale = Kernel(
    "scale_rows(Tensor g, Tensor factors) -> Tensor",
    reference=_scale_reference,
    fake=_scale_fake,
    triton="penalty:scale_rows",
)
_gradient = Kernel(
    "penalty_gradient(Tensor g, str shape, float weight) -> (Tensor, Tensor, Tensor)",
    reference=_gradient_reference,
    fake=_gradient_fake,
    triton="penalty:penalty_gradient",
)
_between = Kernel(
    "points_between(Tensor fake, Tensor real, Tensor seed, int stream, SymInt sample_offset) -> Tensor",
    reference=_between_reference,
    fake=_between_fake,
    triton="penalty:points_between",
)
KERNELS = (_products, _scale, _gradient, _between)


class _Products(torch.autograd.Function):
    """Linear in each argument, as `_Scale` is: the two are each other's derivatives."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return _products(a, b)

    @staticmethod
    def backward(ctx: Any, ds: Tensor) -> tuple[Any, ...]:
        a, b = ctx.saved_tensors
        if b is None:
            return scale_rows(a, 2 * ds), None
        want_a, want_b = ctx.needs_input_grad
        return scale_rows(b, ds) if want_a else None, scale_rows(a, ds) if want_b else None


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(g, factors)
        return _scale(g, factors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        g, factors = ctx.saved_tensors
        want_g, want_factors = ctx.needs_input_grad
        dg = scale_rows(dy, factors) if want_g else None
        return dg, row_products(dy, g) if want_factors else None


def row_products(a: Tensor, b: Tensor | None) -> Tensor:
    """The sum of a b over each sample, (N, ...) to (N,), of a a if b is None; in float32 or better. Differentiable
    any number of times."""
    if not _products.on_gpu(a.device):
        return _products_reference(a, b)
    return _Products.apply(a, b) if needs_grad(a, b) else _products(a, b)


def scale_rows(g: Tensor, factors: Tensor) -> Tensor:
    """g (N, ...) times the factors (N,), which are of the type that sums have; of g's dtype."""
    if not _scale.on_gpu(g.device):
        return _scale_reference(g, factors)
    return _Scale.apply(g, factors) if needs_grad(g, factors) else _scale(g, factors)


def penalty_gradient(g: Tensor, shape: str, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mean penalty of `shape` times weight, its derivative by g, and the norms (N,); not differentiable.

    The derivative has g's shape, dtype and memory layout.
    """
    if math.prod(g.shape) and _gradient.on_gpu(g.device):
        return _gradient(g, shape, weight)
    return _gradient_reference(g, shape, weight)


def points_between(
    fake: Tensor,
    real: Tensor,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """fake + u (real - fake), where u is the `random_uniform` of shape (N, 1) in real's dtype; without gradients."""
    key, _ = _prepare((len(real), 1), seed, stream, sample_offset, generator, real.device)
    run = _between if _between.on_gpu(real.device) else _between_reference
    return run(fake.detach(), real.detach(), key, stream, sample_offset)
