"""diffuse: the calls that the contract tests make, those that it refuses, and the rows of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ._registry import BadCall, Row, Sample, T


def samples() -> tuple[Sample, ...]:
    def coefficients(n: int) -> tuple[T, T]:
        return T((n,), map=torch.sigmoid), T((n,), map=torch.sigmoid)

    seeds = torch.tensor([5, -7, 5])
    return (
        # Blocks of one sample, several pieces of work in it, and an odd end.
        Sample("images", (T((2, 3, 31, 37)), *coefficients(2), 7), {"stream": 3, "sample_offset": 9}),
        # Many samples in a piece, each shorter than a vector.
        Sample("points", (T((40, 3)), *coefficients(40), 2**63)),
        # A cut between pieces inside of a sample and at its end.
        Sample("long", (T((3, 4096)), *coefficients(3), 1), {"return_noise": False}),
        Sample("a seed a sample", (T((3, 5, 7)), *coefficients(3), seeds)),
        Sample("given noise", (T((3, 7)), *coefficients(3)), {"noise": T((3, 7))}),
        Sample("channels last", (T((2, 3, 4, 5), channels_last=True), *coefficients(2), 1)),
        Sample("empty", (T((0, 4)), *coefficients(0), 1)),
        Sample("empty samples", (T((2, 0)), *coefficients(2), 1)),
    )  # fmt: skip


def bad_calls() -> tuple[BadCall, ...]:
    x, a, s = torch.zeros(2, 3), torch.ones(2), torch.ones(2)
    return (
        BadCall("integers", (x.long(), a, s), {}, TypeError, "x0 must be float32"),
        BadCall("one dimension", (a, a, s), {}, ValueError, r"x0 must have shape \(N, \.\.\.\)"),
        BadCall("alpha of another length", (x, torch.ones(3), s), {}, ValueError, r"alpha must have shape \(2,\)"),
        BadCall("alpha is a number", (x, 0.5, s), {}, TypeError, "alpha must be a tensor, got float"),
        BadCall("sigma of integers", (x, a, s.int()), {}, TypeError, "sigma must be float32"),
        BadCall("sigma elsewhere", (x, a, s.to("meta")), {}, ValueError, "sigma must be on cpu"),
        BadCall("seed is a float", (x, a, s, 1.5), {}, TypeError, "seed must be an int64 tensor or an int"),
        BadCall("stream", (x, a, s, 1), {"stream": -1}, ValueError, "stream must lie in"),
        BadCall("noise and seed", (x, a, s, 1), {"noise": x}, ValueError, "seed and generator must be None"),
        BadCall("noise of another shape", (x, a, s), {"noise": x.T}, ValueError, r"noise must have shape \(2, 3\)"),
        BadCall("noise of another dtype", (x, a, s), {"noise": x.double()}, TypeError, "noise must have dtype"),
    )  # fmt: skip


def _row(shape: tuple[int, ...], backward: bool) -> Row:
    def make() -> dict[str, Any]:
        from .diffuse import column, diffuse

        x0, dy = torch.randn(shape), torch.randn(shape)
        alpha_bar = torch.rand(shape[0])
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

        def eager() -> Any:
            noise = torch.randn_like(x0)
            return column(alpha, x0) * x0 + column(sigma, x0) * noise, noise

        def run(f: Any) -> Any:
            return torch.autograd.grad(f()[0], (x0, alpha, sigma), dy) if backward else f()

        if backward:
            x0, alpha, sigma = (t.requires_grad_() for t in (x0, alpha, sigma))
        return {"ours": lambda: run(lambda: diffuse(x0, alpha, sigma)), "eager": lambda: run(eager)}

    name = "diffuse with noise fwd+bwd" if backward else "diffuse with noise"
    moves = 3 + (3 if backward else 0)
    return Row(name, ",".join(map(str, shape)), make, bytes=moves * 4 * math.prod(shape))


def rows() -> Sequence[Row]:
    return [_row((64, 3, 32, 32), False), _row((16, 3, 64, 64), False), _row((64, 3, 32, 32), True)]
