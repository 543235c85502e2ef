"""rational_quadratic_spline: a monotone spline of each element, its inverse and its log-determinant in one pass.

    x            (N, ...)
    widths       (*x.shape, K) logits of the K bins' widths
    heights      (*x.shape, K) logits of their heights
    derivatives  (*x.shape, K - 1) logits of the derivatives at the inner knots, or without tails
                 (*x.shape, K + 1) at all knots
    y, logdet    y of x's shape; logdet (N,), the sum of log dy/dx over a sample, or with elementwise
                 of x's shape and not summed

The spline is that of Gregory and Delbourgo (1982) as Durkan et al. (2019, "Neural spline flows") use it: in a bin with
the corner (x_k, y_k), the extent w, h, the slope s = h / w and the derivatives d_k, d_{k+1} at its knots,
with t = (x - x_k) / w and u = t (1 - t),

    y = y_k + h (s t^2 + d_k u) / (s + (d_k + d_{k+1} - 2 s) u).

With tails="linear" it maps [-B, B] onto itself, B = tail_bound, and is the identity outside; with tails=None
it maps [0, 1] onto itself. What the logits mean is the parameterisation's:

    nflows  bins m + (1 - K m) softmax of the range, derivatives m + softplus; outer ones 1 with tails. normflows' too.
    zuko    logits v are first softly clipped, v / (1 + |2 v / log m|) and for the derivatives v / (1 + |v / log m|)
            with m = min_derivative; bins softmax of the range, derivatives exp. The minimal bins are not used.
    freia   widths and heights have K + 1 numbers, of which the first moves the left (lower) end from -B; each bin is
            m + softplus(v + c), where c makes it 2 B at v = 0; inner derivatives softplus(v + log(e - 1)), v at least
            -20. Outside it goes on with the slope of the diagonal, which is also the outer knots' derivative.

Inputs are clamped to the domain before anything is computed, and every intermediate is finite: no value asserts,
and logits of any size give finite values and gradients. Nothing is read back to the host on a GPU; on a CPU an input
that lies outside [0, 1] by more than rounding raises an error with tails=None, on a GPU it is clamped.

Differentiable once by the kernels, and any number of times by torch's operations from the second derivative on. Works
with `torch.func`, where a second derivative raises an error; in forward mode the reference serves. Only the inputs are
kept for the backward pass, which computes the rest anew. Deterministic. Half types are computed in float32. The
log-determinant is returned in float32 (float64 for float64). Under autocast the logits are cast to x's dtype; otherwise
all dtypes must agree.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._names import check_choice
from ._common import (
    accumulation,
    apply,
    check_float,
    forward_mode,
    needs_grad,
    under_autocast,
)
from ._registry import Op, register
from ._spline_calls import bad_calls, rows, samples
from ._spline_formulas import (
    PARAMETERISATIONS,
    _bins_freia,
    _bins_of,
    _core,
    _Settings,
    _settings,
    _sum,
    rational_quadratic_spline_reference,
)
from ._spline_kernels import _backward, _forward


class _Spline(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return _forward(x, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.settings = inputs[4:]

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlogdet: Tensor) -> tuple[Any, ...]:
        tensors = (dy, dlogdet, *ctx.saved_tensors)
        if needs_grad(*tensors):
            dx, dw, dh, dd = apply(_SplineBackward, *tensors, *ctx.settings)
        else:
            dx, dw, dh, dd = _backward(*tensors, *ctx.settings)
        packed = tensors[4] is None
        return dx, dw, None if packed else dh, None if packed else dd, *(None,) * len(ctx.settings)


class _SplineBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return _backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.settings = _Settings(*inputs[6:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "rational_quadratic_spline can be differentiated once by torch.func, and this asks for a second "
                "derivative; rational_quadratic_spline_reference in pyfastgan.ops.rational_quadratic_spline has all"
            )
        recorded = torch.is_grad_enabled()

        def leaf(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            return t.view_as(t) if recorded and t.requires_grad else t.detach().requires_grad_()

        with torch.enable_grad():
            dy, dlogdet, *inputs = leaves = [leaf(t) for t in ctx.saved_tensors]
            wanted = [t for t in inputs if t is not None]
            outputs = _core(*inputs, ctx.settings)  # type: ignore[call-arg, arg-type]
            first = torch.autograd.grad(outputs, wanted, (dy, dlogdet), create_graph=True)
        asked = [t for t, needed in zip(leaves, ctx.needs_input_grad) if needed and t is not None]
        found = iter(
            torch.autograd.grad(
                first, asked, cotangents[: len(first)], create_graph=recorded, allow_unused=True
            )
        )
        gradients = [next(found) if n else None for n in ctx.needs_input_grad[: len(leaves)]]
        return *gradients, *(None,) * len(ctx.settings)


def _check(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    tails: str | None,
    extra: int,
) -> int:
    """The number of bins; `extra` are the numbers before widths and heights."""
    check_float("x", x)
    if x.dim() < 1:
        raise ValueError("x must have a batch dimension 0, got a tensor without dimensions")
    check_float("widths", widths)
    bins = widths.size(-1) - extra if widths.dim() else 0
    if widths.shape[:-1] != x.shape or bins < 1:
        raise ValueError(
            f"widths must have shape {(*x.shape, 'K' if not extra else 'K + 1')}, at least one bin for each element "
            f"of x, got {tuple(widths.shape)}"
        )
    knots = bins - 1 if tails else bins + 1
    for name, t, last in (("heights", heights, bins + extra), ("derivatives", derivatives, knots)):
        check_float(name, t)
        if t.shape != (*x.shape, last):
            raise ValueError(
                f"{name} must have shape {(*x.shape, last)} for {bins} bins with tails={tails!r}, got {tuple(t.shape)}"
            )
    for name, t in (("widths", widths), ("heights", heights), ("derivatives", derivatives)):
        if t.device != x.device:
            raise ValueError(f"{name} must be on {x.device} like x, got {t.device}")
        if t.dtype != x.dtype and not under_autocast(x.device):
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
    return bins


def _check_choices(tails: str | None, parameterisation: str) -> None:
    check_choice("parameterisation", parameterisation, PARAMETERISATIONS)
    if tails not in ("linear", None):
        raise ValueError(f"tails must be 'linear' or None, got {tails!r}")
    if tails is None and parameterisation != "nflows":
        raise ValueError(
            f"tails must be 'linear' with parameterisation={parameterisation!r}, got None"
        )


def _check_numbers(
    bins: int,
    extra: int,
    tail_bound: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    logit_scale: float,
) -> None:
    if not (math.isfinite(tail_bound) and tail_bound > 0):
        raise ValueError(f"tail_bound must be finite and positive, got {tail_bound}")
    if not (0 < min_derivative < 1):
        raise ValueError(f"min_derivative must lie between 0 and 1, got {min_derivative}")
    if not (math.isfinite(logit_scale) and logit_scale > 0):
        raise ValueError(f"logit_scale must be finite and positive, got {logit_scale}")
    if extra and logit_scale != 1:
        raise ValueError(
            f"logit_scale must be 1 with parameterisation='freia', whose numbers are no logits, got {logit_scale}"
        )
    # The widest that a bin can be at least: an equal share, or freia's own at zero logits.
    most, what = (2 * tail_bound, "2 tail_bound") if extra else (1 / bins, f"1 / {bins} bins")
    for name, value in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
        if not (0 < value <= most):
            raise ValueError(
                f"{name} must be positive and at most {most:.6g} ({what}), got {value}"
            )


def _call(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, s: _Settings
) -> tuple[Tensor, Tensor]:
    if forward_mode():
        return _core(x, widths, heights, derivatives, s)
    if needs_grad(x, widths, heights, derivatives):
        return apply(_Spline, x, widths, heights, derivatives, *s)
    return _forward(x, widths, heights, derivatives, *s)


def _call_freia(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    s: _Settings,
    bound: float,
    min_width: float,
    min_height: float,
) -> tuple[Tensor, Tensor]:
    """freia's spline is the kernel's on [0, 1] between two affine maps; logarithms undo its softmax."""
    wide = accumulation(x.dtype)
    w, h, d = (t.to(wide) for t in (widths, heights, derivatives))
    b = _bins_freia(w, h, d, bound, min_width, min_height)
    across, up = b.width.sum(-1), b.height.sum(-1)
    scale = across / up
    ends = (b.y[..., 0], up, b.x[..., 0], across)
    low, extent, out_low, out_extent = ends if s.inverse else (*ends[2:], *ends[:2])
    y, log = _call(
        (x.to(wide) - low) / extent,
        b.width.log(),
        b.height.log(),
        (b.slope[..., 1:-1] * scale[..., None]).log(),
        s._replace(elementwise=True),
    )
    log = log + scale.log() if s.inverse else log - scale.log()
    return (out_low + out_extent * y).to(x.dtype), _sum(log, s.elementwise)


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    elementwise: bool = False,
    parameterisation: str = "nflows",
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline of each element, or its inverse, and the log-determinant.

    Args:
        x: (N, ...) float32, float64, bfloat16 or float16, of any layout.
        widths: (*x.shape, K) logits; for freia (*x.shape, K + 1), the left end first.
        heights: the same of the heights.
        derivatives: (*x.shape, K - 1), or (*x.shape, K + 1) with tails=None.
        inverse: the x that gives this, with its own log-determinant.
        tails: "linear", the identity outside [-tail_bound, tail_bound]; or None, a domain of [0, 1].
        tail_bound: half the width of the domain with linear tails.
        min_bin_width, min_bin_height: the least share of the domain that a bin has (freia: the least extent).
        min_derivative: the least derivative at a knot; for zuko what bounds all logits, its `slope`.
        elementwise: do not sum the log-determinant over a sample.
        parameterisation: "nflows", "zuko" or "freia": what the logits mean; the defaults of all arguments are nflows'.
        logit_scale: a positive factor of the logits of widths and heights, not of the derivatives: where nflows takes
            them from a network of n hidden units, it is 1 / sqrt(n).

    Returns:
        y, contiguous, of x's shape and dtype; and logdet (N,), or of x's shape if elementwise, in float32
        (float64 for float64), in nats.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value, or on a CPU an
            input lies outside [0, 1] with tails=None; the message names it.
        RuntimeError: a second derivative is asked for by torch.func.
    """
    _check_choices(tails, parameterisation)
    extra = 1 if parameterisation == "freia" else 0
    bins = _check(x, widths, heights, derivatives, tails, extra)
    _check_numbers(
        bins, extra, tail_bound, min_bin_width, min_bin_height, min_derivative, logit_scale
    )
    if not widths.dtype == heights.dtype == derivatives.dtype == x.dtype:  # under autocast
        widths, heights, derivatives = (t.to(x.dtype) for t in (widths, heights, derivatives))
    s = _settings(
        inverse,
        tails,
        tail_bound,
        min_bin_width,
        min_bin_height,
        min_derivative,
        elementwise,
        parameterisation,
        logit_scale,
    )
    if extra:
        return _call_freia(
            x, widths, heights, derivatives, s, tail_bound, min_bin_width, min_bin_height
        )
    return _call(x, widths, heights, derivatives, s)


def packed_rational_quadratic_spline(
    x: Tensor,
    logits: Tensor,
    *,
    inverse: bool = False,
    tails: str | None = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    elementwise: bool = False,
    parameterisation: str = "nflows",
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`rational_quadratic_spline` of logits (*x.shape, P) that hold widths, heights and derivatives one after the other
    (for freia the two ends before them), as networks give them: they are read, and their gradient is made, in place."""
    check_float("logits", logits)
    _check_choices(tails, parameterisation)
    extra = 1 if parameterisation == "freia" else 0
    columns = (logits.size(-1) if logits.dim() else 0) - 2 * extra
    bins = _bins_of(columns, tails is not None)
    if bins < 1 or columns != 3 * bins + (-1 if tails else 1):
        raise ValueError(
            f"logits must have 3 K {'- 1' if tails else '+ 1'}{' + 2' if extra else ''} numbers in the last dimension, "
            f"got shape {tuple(logits.shape)}"
        )
    numbers = (tail_bound, min_bin_width, min_bin_height, min_derivative)
    _check_numbers(bins, extra, *numbers, logit_scale)
    s = _settings(inverse, tails, *numbers, elementwise, parameterisation, logit_scale)
    if not extra and isinstance(x, Tensor) and _fits(logits, x):
        return _call(x, logits, None, None, s)
    # Without extra numbers the parts are only looked at.
    whole = logits if extra else logits.detach()
    *ends, w, h, d = whole.split((*(1,) * 2 * extra, bins, bins, columns - 2 * bins), -1)
    if extra:
        w, h = torch.cat((ends[0], w), -1), torch.cat((ends[1], h), -1)
    _check(x, w, h, d, tails, extra)
    if not extra:
        return _call(x, logits.to(x.dtype), None, None, s)
    w, h, d = (t.to(x.dtype) for t in (w, h, d))
    return _call_freia(x, w, h, d, s, tail_bound, min_bin_width, min_bin_height)


def _fits(logits: Tensor, x: Tensor) -> bool:
    """Whether there is nothing to object to, nor to cast."""
    alike = logits.dtype is x.dtype and logits.device == x.device
    return alike and x.dim() > 0 and logits.shape[:-1] == x.shape


register(
    Op(
        name="rational_quadratic_spline",
        function=rational_quadratic_spline,
        reference=rational_quadratic_spline_reference,
        kernels=(_forward, _backward),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=1,
        # Where a knot's rounding is divided by a narrow bin, some 1e-7 become this much in a gradient.
        epsilon={
            torch.float32: 2e-5,
            torch.float64: 1e-12,
            torch.bfloat16: 2e-5,
            torch.float16: 2e-5,
        },
        rows=rows,
    )
)
