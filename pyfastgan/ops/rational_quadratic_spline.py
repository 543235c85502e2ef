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

Differentiable once; a second derivative raises an error. Works with `torch.func`; in forward mode the reference
serves. Only the inputs are kept for the backward pass, which computes the rest anew. Deterministic. Half types are
computed in float32. The log-determinant is returned in float32 (float64 for float64). Under autocast the logits are
cast to x's dtype; otherwise all dtypes must agree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._names import check_choice
from . import _backends
from ._common import (
    TYPE_NUMBER,
    accumulation,
    apply,
    check_float,
    forward_mode,
    needs_grad,
    output,
    under_autocast,
)
from ._registry import BadCall, Kernel, Op, Row, Sample, T, register
from ._spline_formulas import (
    PARAMETERISATIONS,
    _backward_reference,
    _bins_freia,
    _bins_of,
    _check_domain,
    _core,
    _forward_reference,
    _Settings,
    _settings,
    _sum,
    rational_quadratic_spline_reference,
)

_MOST_BINS = 64  # of the kernels; more are served by the reference


def _empty(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    shape = x.shape if rest[-1] else x.shape[:1]
    return _empty(x), x.new_empty(shape, dtype=accumulation(x.dtype))


def _backward_fake(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dh, dd = (x.new_empty(0) if t is None else _empty(t) for t in (heights, derivatives))
    return _empty(x), _empty(widths), dh, dd


def _rows_of(t: Tensor) -> tuple[Tensor, int]:
    """t and how far apart its rows lie, or those of a copy if they are not evenly spaced."""
    if t.is_contiguous():
        return t, t.size(-1)
    if t.size(-1) > 1 and t.stride(-1) != 1:
        return t.contiguous(), t.size(-1)
    step, expected = None, 0
    for k in range(t.dim() - 2, -1, -1):
        if t.size(k) == 1:
            continue
        if step is None:
            step = expected = t.stride(k)
        elif t.stride(k) != expected:
            return t.contiguous(), t.size(-1)
        expected *= t.size(k)
    return t, t.size(-1) if step is None else step


def _three(
    widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, bins: int
) -> tuple[list[Tensor], list[int]]:
    """The tensors to keep alive, and address and stride of widths, heights and derivatives."""
    if heights is None or derivatives is None:
        t, step = _rows_of(widths)
        address, size = t.data_ptr(), t.element_size()
        places = [address, address + bins * size, address + 2 * bins * size]
        return [t], [n for place in places for n in (place, step)]
    kept, numbers = [], []
    for t in (widths, heights, derivatives):
        t, step = _rows_of(t)
        kept.append(t)
        numbers += [t.data_ptr(), step]
    return kept, numbers


def _tail(x: Tensor, bins: int, s: _Settings) -> tuple[Any, ...]:
    """What both kernels take after their pointers."""
    return (
        TYPE_NUMBER[x.dtype],
        x.size(0),
        math.prod(x.shape[1:]),
        s.elementwise,
        bins,
        s.tails,
        s.low,
        s.range,
        s.min_width,
        s.min_height,
        s.min_derivative,
        s.scale,
        s.pull,
        s.slope_pull,
        s.exponent,
        s.inverse,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    if bins > _MOST_BINS:
        return _forward_reference(x, widths, heights, derivatives, *settings)
    _check_domain(x, s)
    x = x.contiguous()
    y, logdet = _forward_fake(x, s.elementwise)
    kept, logits = _three(widths, heights, derivatives, bins)
    _backends.native("_cpu").rational_quadratic_spline(
        x.data_ptr(), *logits, output(y), output(logdet), *_tail(x, bins, s)
    )
    return y, logdet


def _backward_cpu(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    if bins > _MOST_BINS:
        return _backward_reference(dy, dlogdet, x, widths, heights, derivatives, *settings)
    dy, dlogdet, x = dy.contiguous(), dlogdet.contiguous(), x.contiguous()
    dx, dw, dh, dd = _backward_fake(dy, dlogdet, x, widths, heights, derivatives)
    kept, logits = _three(widths, heights, derivatives, bins)
    packed = heights is None
    for gradient in (dw, dh, dd):
        output(gradient)  # whole, where three may lie in one
    _, gradients = _three(dw, None if packed else dh, None if packed else dd, bins)
    _backends.native("_cpu").rational_quadratic_spline_backward(
        dy.data_ptr(),
        dlogdet.data_ptr(),
        x.data_ptr(),
        *logits,
        output(dx),
        *gradients,
        *_tail(x, bins, s),
    )
    return dx, dw, dh, dd


def _numbers(s: _Settings) -> tuple[Any, ...]:
    """What both CUDA kernels take after the number of bins, and the stream."""
    numbers = (s.tails, s.low, s.range, s.min_width, s.min_height, s.min_derivative, s.scale)
    queue = torch.cuda.current_stream().cuda_stream
    return (*numbers, s.pull, s.slope_pull, s.exponent, s.inverse, queue)


def _forward_cuda(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    _check_domain(x, s)
    x = x.contiguous()
    y, log = _forward_fake(x, True)
    kept, logits = _three(widths, heights, derivatives, bins)
    outputs = (y.data_ptr(), log.data_ptr(), TYPE_NUMBER[x.dtype], x.numel(), bins)
    with torch.cuda.device(x.device):
        _backends.native("_cuda").rational_quadratic_spline(
            x.data_ptr(), *logits, *outputs, *_numbers(s)
        )
    return y, _sum(log, s.elementwise)


def _backward_cuda(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    if not s.elementwise:
        dlogdet = dlogdet.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    dy, dlogdet, x = dy.contiguous(), dlogdet.contiguous(), x.contiguous()
    dx, dw, dh, dd = _backward_fake(dy, dlogdet, x, widths, heights, derivatives)
    kept, logits = _three(widths, heights, derivatives, bins)
    packed = heights is None
    _, gradients = _three(dw, None if packed else dh, None if packed else dd, bins)
    inputs = (dy.data_ptr(), dlogdet.data_ptr(), x.data_ptr())
    with torch.cuda.device(x.device):
        _backends.native("_cuda").rational_quadratic_spline_backward(
            *inputs,
            *logits,
            dx.data_ptr(),
            *gradients,
            TYPE_NUMBER[x.dtype],
            x.numel(),
            bins,
            *_numbers(s),
        )
    return dx, dw, dh, dd


_SCHEMA = (
    "bool inverse, bool tails, float low, float range, float min_width, float min_height, float min_derivative, "
    "float scale, float pull, float slope_pull, bool exponent, bool elementwise"
)

# Without heights and derivatives, widths holds all three one after the other.
_forward = Kernel(
    f"rational_quadratic_spline(Tensor x, Tensor widths, Tensor? heights, Tensor? derivatives, {_SCHEMA}) "
    "-> (Tensor y, Tensor logdet)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
)
_backward = Kernel(
    "rational_quadratic_spline_backward(Tensor dy, Tensor dlogdet, Tensor x, Tensor widths, Tensor? heights, "
    f"Tensor? derivatives, {_SCHEMA}) -> (Tensor dx, Tensor dwidths, Tensor dheights, Tensor dderivatives)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
)


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
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "rational_quadratic_spline can be differentiated once, and this asks for a second derivative; "
            "pyfastgan.ops.rational_quadratic_spline.rational_quadratic_spline_reference has all of them"
        )


def _check(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    tails: str | None,
    tail_bound: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    parameterisation: str,
    logit_scale: float,
) -> None:
    check_float("x", x)
    check_choice("parameterisation", parameterisation, PARAMETERISATIONS)
    if tails not in ("linear", None):
        raise ValueError(f"tails must be 'linear' or None, got {tails!r}")
    if tails is None and parameterisation != "nflows":
        raise ValueError(
            f"tails must be 'linear' with parameterisation={parameterisation!r}, got None"
        )
    if x.dim() < 1:
        raise ValueError("x must have a batch dimension 0, got a tensor without dimensions")
    check_float("widths", widths)
    extra = 1 if parameterisation == "freia" else 0
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
        RuntimeError: a second derivative is asked for.
    """
    _check(
        x,
        widths,
        heights,
        derivatives,
        tails,
        tail_bound,
        min_bin_width,
        min_bin_height,
        min_derivative,
        parameterisation,
        logit_scale,
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
    if parameterisation == "freia":
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
    extra = 2 if parameterisation == "freia" else 0
    columns = (logits.size(-1) if logits.dim() else 0) - extra
    bins = _bins_of(columns, tails is not None)
    if bins < 1 or columns != 3 * bins + (-1 if tails else 1):
        raise ValueError(
            f"logits must have 3 K {'- 1' if tails else '+ 1'}{' + 2' if extra else ''} numbers in the last dimension, "
            f"got shape {tuple(logits.shape)}"
        )
    sizes = (1, 1) if extra else ()
    # Without extra numbers the parts are only looked at.
    whole = logits if extra else logits.detach()
    *ends, w, h, d = whole.split((*sizes, bins, bins, columns - 2 * bins), -1)
    if extra:
        w, h = torch.cat((ends[0], w), -1), torch.cat((ends[1], h), -1)
    arguments = (tails, tail_bound, min_bin_width, min_bin_height, min_derivative)
    _check(x, w, h, d, *arguments, parameterisation, logit_scale)
    s = _settings(inverse, *arguments, elementwise, parameterisation, logit_scale)
    if not extra:
        return _call(x, logits.to(x.dtype), None, None, s)
    w, h, d = (t.to(x.dtype) for t in (w, h, d))
    return _call_freia(x, w, h, d, s, tail_bound, min_bin_width, min_bin_height)


def _samples() -> tuple[Sample, ...]:
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


def _bad_calls() -> tuple[BadCall, ...]:
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


def _rows() -> Sequence[Row]:
    directions = ("fwd", "inverse", "fwd+bwd")
    return [_row(shape, what) for shape in ((8192, 64), (512, 32)) for what in directions]


register(
    Op(
        name="rational_quadratic_spline",
        function=rational_quadratic_spline,
        reference=rational_quadratic_spline_reference,
        kernels=(_forward, _backward),
        samples=_samples(),
        bad_calls=_bad_calls(),
        orders=1,
        # Where a knot's rounding is divided by a narrow bin, some 1e-7 become this much in a gradient.
        epsilon={
            torch.float32: 2e-5,
            torch.float64: 1e-12,
            torch.bfloat16: 2e-5,
            torch.float16: 2e-5,
        },
        rows=_rows,
    )
)
