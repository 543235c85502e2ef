"""affine_coupling: the calls that the contract tests make, those that it refuses, and the rows of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._registry import BadCall, Row, Sample, T


def samples() -> tuple[Sample, ...]:
    def three(*shape: int, **of: Any) -> tuple[T, T, T]:
        return T(shape, **of), T(shape, **of), T(shape, **of)

    return (
        # Each scale and each order of the two steps; sizes that are no whole number of vectors.
        Sample("exp", three(3, 5, 7)),
        Sample("tanh, inverse", three(2, 33), {"scale": "tanh", "inverse": True}),
        Sample("sigmoid, shift first", three(4, 17), {"scale": "sigmoid", "shift_first": True}),
        Sample(
            "softclamp, channels last, inverse of shift first",
            three(2, 3, 4, 5, channels_last=True, scale=2.0),
            {"scale": "softclamp", "clamp": 1.5, "shift_first": True, "inverse": True},
        ),
        Sample(
            "clamped tanh", three(3, 21), {"scale": "clamped_tanh", "clamp": 1.9, "inverse": True}
        ),
        # A sample of several pieces of work, several samples in a piece, and nothing.
        Sample("large samples", three(2, 3, 41, 83), {"scale": "sigmoid"}),
        Sample("many samples", three(9000, 2), {"scale": "softclamp"}),
        Sample("empty", three(0, 4)),
        Sample("empty samples", three(3, 0)),
    )


def bad_calls() -> tuple[BadCall, ...]:
    x = torch.zeros(2, 3)
    return (
        BadCall("raw_scale of another shape", (x, x.T, x), {}, ValueError, r"raw_scale must have the shape of x, \(2"),
        BadCall("shift of another shape", (x, x, torch.zeros(2, 1)), {}, ValueError, "shift must have the shape of x"),
        BadCall("integers", (x.long(), x, x), {}, TypeError, "x must be float32"),
        BadCall("mixed dtypes", (x, x.double(), x), {}, TypeError, "raw_scale must have the dtype of x"),
        BadCall("mixed devices", (x, x, x.to("meta")), {}, ValueError, "shift must be on cpu"),
        BadCall("no batch", (x[0, 0], x[0, 0], x[0, 0]), {}, ValueError, "x must have a batch dimension"),
        BadCall("unknown scale", (x, x, x), {"scale": "sigmiod"}, ValueError, "did you mean 'sigmoid'"),
        BadCall("zero clamp", (x, x, x), {"clamp": 0.0}, ValueError, "clamp must be finite and positive"),
    )  # fmt: skip


def _row(shape: tuple[int, ...], scale: str, first: bool, order: int) -> Row:
    def make() -> dict[str, Callable[[], Any]]:
        from .affine_coupling import affine_coupling

        x, raw, shift, dy = torch.randn(4, *shape)
        dlogdet = torch.randn(shape[0])
        inputs = [t.clone().requires_grad_(order > 0) for t in (x, raw, shift)]
        x, raw, shift = inputs

        def eager() -> tuple[Tensor, Tensor]:
            if scale != "sigmoid":
                log = raw.tanh() if scale == "tanh" else raw
                return x * log.exp() + shift, log.flatten(1).sum(1)
            factor = torch.sigmoid(raw + 2)
            return (x + shift) * factor, factor.log().flatten(1).sum(1)

        def run(f: Callable[[], Any]) -> Any:
            return torch.autograd.grad(f(), inputs, (dy, dlogdet)) if order else f()

        return {
            "ours": lambda: run(
                lambda: affine_coupling(x, raw, shift, scale=scale, shift_first=first)
            ),
            "eager": lambda: run(eager),
        }

    moves = 4 + order * 5
    return Row(
        f"affine_coupling {scale} {'fwd+bwd' if order else 'fwd'}",
        ",".join(map(str, shape)),
        make,
        bytes=moves * 4 * math.prod(shape),
    )


def rows() -> Sequence[Row]:
    image, vector = (64, 48, 32, 32), (4096, 64)
    return [
        _row(image, "exp", False, 0),
        _row(image, "exp", False, 1),
        _row(image, "sigmoid", True, 1),
        _row(vector, "tanh", False, 0),
        _row(vector, "tanh", False, 1),
    ]
