"""rational_quadratic_spline: the calls that the contract tests make, those that it refuses, and the rows of the
benchmarks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._registry import BadCall, Row, Sample, T
from ._spline_formulas import rational_quadratic_spline_reference


def samples() -> tuple[Sample, ...]:
    def logits(bins: int, *shape: int, scale: float = 1.0, knots: int = -1, extra: int = 0) -> Any:
        return (
            T(shape, scale=0.7),
            T((*shape, bins + extra), scale=scale),
            T((*shape, bins + extra), scale=scale),
            T((*shape, bins + knots), scale=scale),
        )

    return (
        # Both directions, an odd end of a pack, inputs on both sides of the bounds.
        Sample("forward", logits(4, 3, 4)),
        Sample("inverse", logits(5, 3, 2), {"inverse": True, "tail_bound": 1.3}),
        Sample("one bin, elementwise", logits(1, 6), {"elementwise": True}),
        # Rows longer than a tile, samples of several pieces of work.
        Sample("many bins", logits(19, 2, 613), {"tail_bound": 2.0}),
        Sample("inverse of many samples", logits(8, 700, 3), {"inverse": True, "tail_bound": 2.0}),
        Sample(
            "no tails",
            (
                T((5, 3), map=lambda x: 0.5 * torch.sigmoid(x)),
                T((5, 3, 4)),
                T((5, 3, 4)),
                T((5, 3, 5)),
            ),
            {"tails": None, "min_bin_width": 0.02, "min_bin_height": 0.05, "min_derivative": 0.1},
        ),
        Sample(
            "zuko, wild logits",
            logits(3, 3, 5, scale=10.0),
            {"parameterisation": "zuko", "tail_bound": 1.5, "logit_scale": 0.7},
        ),
        Sample(
            "freia, inverse",
            logits(2, 2, 5, extra=1),
            {"parameterisation": "freia", "inverse": True, "min_bin_width": 0.1},
        ),
        Sample("scaled logits", logits(4, 3, 5), {"logit_scale": 0.25}),
        Sample("empty", logits(4, 0, 3)),
    )


def bad_calls() -> tuple[BadCall, ...]:
    x, w, d = torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 3, 3)
    full = torch.zeros(2, 3, 5)
    calls: tuple[Any, ...] = (
        ("integers", (x.long(), w, w, d), {}, TypeError,
         "x must be float32"),
        ("widths of other elements", (x, w[:1], w, d), {}, ValueError,
         "widths must have shape"),
        ("heights of another size", (x, w, full, d), {}, ValueError,
         r"heights must have shape \(2, 3, 4\)"),
        ("derivatives for no tails", (x, w, w, full), {}, ValueError,
         r"derivatives must have shape \(2, 3, 3\)"),
        ("derivatives for tails", (x, w, w, d), {"tails": None}, ValueError,
         r"derivatives must have shape \(2, 3, 5\)"),
        ("mixed dtypes", (x, w.double(), w, d), {}, TypeError,
         "widths must have the dtype of x"),
        ("mixed devices", (x, w, w.to("meta"), d), {}, ValueError,
         "heights must be on cpu"),
        ("no room for the bins", (x, w, w, d), {"min_bin_width": 0.3}, ValueError,
         r"min_bin_width must be positive and at most 0.25"),
        ("no least height", (x, w, w, d), {"min_bin_height": 0.0}, ValueError,
         "min_bin_height must be positive"),
        ("no least derivative", (x, w, w, d), {"min_derivative": 0.0}, ValueError,
         "min_derivative must lie between"),
        ("unknown tails", (x, w, w, d), {"tails": "circular"}, ValueError,
         "tails must be 'linear' or None"),
        ("zuko without tails", (x, w, w, full), {"tails": None, "parameterisation": "zuko"}, ValueError,
         "tails must be 'linear' with"),
        ("unknown parameterisation", (x, w, w, d), {"parameterisation": "nflow"}, ValueError,
         "did you mean 'nflows'"),
        ("negative bound", (x, w, w, d), {"tail_bound": -1.0}, ValueError,
         "tail_bound must be finite and positive"),
        ("no scale", (x, w, w, d), {"logit_scale": 0.0}, ValueError,
         "logit_scale must be finite and positive"),
        ("freia with a scale", (x, full, full, d), {"parameterisation": "freia", "logit_scale": 0.5}, ValueError,
         "logit_scale must be 1 with"),
        ("outside the domain", (x - 0.5, w, w, full), {"tails": None}, ValueError,
         r"x must lie in \[0.0, 1.0\] with tails=None"),
    )  # fmt: skip
    return tuple(BadCall(*call) for call in calls)


def _row(shape: tuple[int, int], what: str, bins: int = 8) -> Row:
    backward, inverse = what == "fwd+bwd", what == "inverse"

    def make() -> dict[str, Callable[[], Any]]:
        from .rational_quadratic_spline import rational_quadratic_spline

        x, dy = 1.5 * torch.randn(2, *shape)
        sizes = (bins, bins, bins - 1)
        logits = [torch.randn(*shape, k).requires_grad_(backward) for k in sizes]
        inputs = [x.requires_grad_(backward), *logits]
        dlogdet = torch.randn(shape[0])

        def run(f: Callable[[], Any]) -> Any:
            return torch.autograd.grad(f(), inputs, (dy, dlogdet)) if backward else f()

        kwargs: Any = {"inverse": inverse, "tail_bound": 3.0}
        calls = {
            "ours": lambda: run(lambda: rational_quadratic_spline(x, *logits, **kwargs)),
            "eager": lambda: run(lambda: rational_quadratic_spline_reference(x, *logits, **kwargs)),
        }
        for peer, theirs in _peers().items():

            def call(theirs: Callable[..., Any] = theirs) -> Any:
                y, log = theirs(x, *logits, tails="linear", **kwargs)
                return y, log.sum(1)

            calls[peer] = functools.partial(run, call)
        return calls

    width = 3 * bins - 1
    moved = width + 2 + (2 * width + 3 if backward else 0)
    return Row(
        f"rational_quadratic_spline {what}, K={bins}",
        ",".join(map(str, shape)),
        make,
        bytes=moved * 4 * math.prod(shape),
    )


def _peers() -> dict[str, Callable[..., Any]]:
    """The libraries' own functions, where they are installed."""
    found: dict[str, Callable[..., Any]] = {}
    try:
        from nflows.transforms.splines import unconstrained_rational_quadratic_spline

        found["nflows"] = unconstrained_rational_quadratic_spline
    except ImportError:
        pass
    try:
        from normflows.utils.splines import unconstrained_rational_quadratic_spline as other

        found["normflows"] = other
    except ImportError:
        pass
    return found


def rows() -> Sequence[Row]:
    directions = ("fwd", "inverse", "fwd+bwd")
    return [_row(shape, what) for shape in ((8192, 64), (512, 32)) for what in directions]
