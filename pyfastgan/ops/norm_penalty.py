"""norm_penalty: a penalty of each sample's norm and its derivative, the heart of a gradient penalty.

For g of shape (N, ...), with |g_i| the Euclidean norm of sample i:

    squared    p = |g|^2 / 2            dp/dg = g
    two-sided  p = (|g| - 1)^2          dp/dg = 2 (1 - 1 / |g|) g
    one-sided  p = max(0, |g| - 1)^2    dp/dg = 2 max(0, 1 - 1 / |g|) g

each times `weight`; where |g| = 0 the derivative is 0. Returns (p, |g|, dp/dg): p and |g| of shape (N,)
in float32, or float64 for float64; dp/dg of g's shape, dtype and memory layout. Under autocast it
stays in g's dtype.

It gives the derivative itself and records none: a g that needs a gradient is refused with a
RuntimeError. Deterministic; sums are taken in float64 across blocks, so that a sample's numbers do
not depend on the batch that it stands in. Raises TypeError for anything but a tensor of float32,
float64, bfloat16 or float16, ValueError for an unknown kind or a tensor without dimensions.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice

from . import _backends
from ._common import TYPE_NUMBER, check_float, dense, needs_grad
from ._registry import FLOATS, BadCall, Kernel, Op, Row, Sample, T, register

KINDS = ("squared", "two-sided", "one-sided")


def norm_penalty_reference(
    g: Tensor, kind: str, weight: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition."""
    wide = _wide(g)
    square = wide.flatten(1).square().sum(1) if g.dim() > 1 else wide.square()
    norm = square.sqrt()
    value, factor = 0.5 * square, torch.ones_like(square)
    if kind != "squared":
        excess = norm - 1 if kind == "two-sided" else torch.relu(norm - 1)
        value = excess.square()
        factor = torch.where(square == 0, 0, 2 * excess / norm)
    scale = (weight * factor).reshape(-1, *[1] * (g.dim() - 1))
    return weight * value, norm, (wide * scale).to(g.dtype)


def _wide(g: Tensor) -> Tensor:
    return g.float() if g.dtype in (torch.bfloat16, torch.float16) else g


def _fake(g: Tensor, kind: str, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if g.dtype == torch.float64 else torch.float32
    numbers = g.new_empty(g.shape[:1], dtype=dtype)
    return numbers, torch.empty_like(numbers), torch.empty_like(dense(g))


def _run_reference(g: Tensor, kind: str, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    value, norm, slope = norm_penalty_reference(dense(g), kind, weight)
    return value, norm, torch.empty_like(dense(g)).copy_(slope)


def _run_cpu(g: Tensor, kind: str, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    g = dense(g)
    value, norm, slope = _fake(g, kind, weight)
    _backends.native("_cpu").norm_penalty(
        g.data_ptr(),
        value.data_ptr(),
        norm.data_ptr(),
        slope.data_ptr(),
        KINDS.index(kind),
        weight,
        TYPE_NUMBER[g.dtype],
        g.size(0),
        math.prod(g.shape[1:]),
        torch.get_num_threads(),
    )
    return value, norm, slope


_kernel = Kernel(
    "norm_penalty(Tensor g, str kind, float weight) -> (Tensor, Tensor, Tensor)",
    reference=_run_reference,
    fake=_fake,
    cpu=_run_cpu,
)


def norm_penalty(g: Tensor, kind: str, weight: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(weight p(|g|), |g|, weight dp/dg) of each sample, in two passes over g, one of them in cache.

    Args:
        g: (N, ...), usually the gradients of a critic's outputs by its inputs.
        kind: squared, two-sided or one-sided.
        weight: Of the penalty.
    """
    check_float("g", g)
    check_choice("kind", kind, KINDS)
    if g.dim() == 0:
        raise ValueError("g must be of shape (N, ...), got a tensor without dimensions")
    if needs_grad(g):
        raise RuntimeError(
            "norm_penalty gives its own derivative and records none: call it on g.detach()"
        )
    return _kernel(g, kind, weight)


def _contestants(shape: tuple[int, ...]) -> dict[str, Any]:
    g = 0.03 * torch.randn(shape)

    def eager() -> tuple[Tensor, Tensor]:
        norm = g.flatten(1).norm(dim=1)
        factor = 2 * (norm - 1) / norm
        return (norm - 1).square(), g * factor.reshape(-1, *[1] * (g.dim() - 1))

    return {"ours": lambda: norm_penalty(g, "two-sided"), "eager": eager}


def _rows() -> list[Row]:
    return [
        Row(
            "norm_penalty two-sided",
            ",".join(map(str, shape)),
            partial(_contestants, shape),
            bytes=8 * math.prod(shape),
        )
        for shape in ((256, 2), (64, 1, 16, 16), (64, 3, 32, 32), (64, 3, 64, 64))
    ]


register(
    Op(
        name="norm_penalty",
        function=norm_penalty,
        reference=norm_penalty_reference,
        kernels=(_kernel,),
        # Norms below and above 1; samples shorter than a vector, with an odd end, longer than a block
        # of the sum, in another layout; a gradient of zero; nothing at all.
        samples=(
            Sample("points", (T((300, 2)), "two-sided", 0.5)),
            Sample("images", (T((4, 3, 9, 7), scale=0.1, channels_last=True), "one-sided", 10.0)),
            Sample("several pieces", (T((5, 20001), scale=0.01), "two-sided")),
            Sample("squared", (T((5, 3, 33)), "squared", 3.0)),
            Sample("zeros and a number each", (T((6,), map=lambda x: x.round()), "two-sided")),
            Sample("empty", (T((0, 4)), "two-sided")),
            Sample("empty samples", (T((3, 0)), "one-sided")),
        ),
        bad_calls=(
            BadCall(
                "integers",
                (torch.zeros(3, 2, dtype=torch.int64), "squared"),
                {},
                TypeError,
                "g must be",
            ),
            BadCall(
                "a number", (torch.zeros(()), "squared"), {}, ValueError, r"shape \(N, \.\.\.\)"
            ),
            BadCall(
                "unknown kind",
                (torch.zeros(3, 2), "two_sided"),
                {},
                ValueError,
                "did you mean 'two-sided'",
            ),
            BadCall(
                "needs a gradient",
                (torch.zeros(3, 2, requires_grad=True), "squared"),
                {},
                RuntimeError,
                "detach",
            ),
        ),
        orders=0,
        epsilon={dtype: 8 * torch.finfo(dtype).eps for dtype in FLOATS},
        rows=_rows,
    )
)
