"""rational_quadratic_spline in plain PyTorch: its formulas, their inverse, and the gradients of both.

`rational_quadratic_spline.py` says what the arguments are.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import accumulation

PARAMETERISATIONS = ("nflows", "zuko", "freia")
_ROUNDING = 1e-4  # how far an input may lie outside [0, 1]


class _Settings(NamedTuple):
    """What the kernels need to know beside the logits."""

    inverse: bool
    tails: bool
    low: float
    range: float
    min_width: float
    min_height: float
    min_derivative: float
    scale: float  # a factor of the logits of widths and heights
    pull: float  # 1 / bound of the soft clip of widths and heights; 0: none
    slope_pull: float  # the same of the derivatives
    exponent: bool  # derivatives are exp, not minimum + softplus
    elementwise: bool


class _Bins(NamedTuple):
    """All bins of all elements: lower corners, extents (..., K), and derivatives at the knots (..., K + 1)."""

    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    slope: Tensor


def _soft_clip(v: Tensor, pull: float) -> Tensor:
    return v / (1 + v.abs() * pull) if pull else v


def _before(extent: Tensor) -> Tensor:
    """The sums of what comes before each bin."""
    return F.pad(extent.cumsum(-1)[..., :-1], (1, 0))


def _bins(widths: Tensor, heights: Tensor, derivatives: Tensor, s: _Settings) -> _Bins:
    def axis(logits: Tensor, minimum: float) -> tuple[Tensor, Tensor]:
        free = 1 - minimum * logits.size(-1)
        clipped = _soft_clip(logits * s.scale, s.pull)
        extent = s.range * (minimum + free * torch.softmax(clipped, -1))
        return s.low + _before(extent), extent

    if s.exponent:
        slope = torch.exp(_soft_clip(derivatives, s.slope_pull))
    else:
        slope = s.min_derivative + F.softplus(derivatives)
    if s.tails:
        slope = F.pad(slope, (1, 1), value=1.0)
    return _Bins(*axis(widths, s.min_width), *axis(heights, s.min_height), slope)


def _bins_freia(
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    bound: float,
    min_width: float,
    min_height: float,
) -> _Bins:
    def axis(numbers: Tensor, minimum: float) -> tuple[Tensor, Tensor]:
        extent = minimum + F.softplus(numbers[..., 1:] + _softplus_inverse(2 * bound - minimum))
        return numbers[..., :1] - bound + _before(extent), extent

    x, width = axis(widths, min_width)
    y, height = axis(heights, min_height)
    # Kept above 2e-9: the inverse has no finite gradient where a derivative vanishes.
    inner = F.softplus(derivatives.clamp(min=-20.0) + _softplus_inverse(1.0))
    outer = height.sum(-1, keepdim=True) / width.sum(-1, keepdim=True)
    return _Bins(x, width, y, height, torch.cat((outer, inner, outer), -1))


def _softplus_inverse(y: float) -> float:
    return y + math.log(-math.expm1(-y))


class _Place(NamedTuple):
    """Where each element stands: its bin, the share of the bin's width, and whether it lies outside."""

    bin: Tensor  # (..., 1)
    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    left: Tensor
    right: Tensor
    theta: Tensor
    outside: Tensor


def _locate(at: Tensor, b: _Bins, inverse: bool) -> _Place:
    def keep(t: Tensor, index: Tensor) -> Tensor:
        return t.gather(-1, index).squeeze(-1)

    knots, extent = (b.y, b.height) if inverse else (b.x, b.width)
    inside = at.clamp(knots[..., 0], knots[..., -1] + extent[..., -1])
    index = (inside[..., None] >= knots[..., 1:]).sum(-1, keepdim=True)
    x, width, y, height = (keep(t, index) for t in b[:4])
    left, right = keep(b.slope, index), keep(b.slope, index + 1)
    slope = height / width
    share = (inside - (y if inverse else x)) / (height if inverse else width)
    # Bounded without a loss of gradient: at a knot a share just above 1 is rounding.
    theta = share + (share.clamp(0, 1) - share).detach()
    if inverse:
        # The root of a t^2 + b t = s r with a = s - b, each sign of b in the form that does not cancel.
        r, rest = theta, 1 - theta
        b_ = rest * left + r * (2 * slope - right)
        square = (b_ - 2 * slope * r).square() + 4 * slope.square() * r * rest
        root = square.clamp(min=torch.finfo(at.dtype).tiny).sqrt()
        negative = b_ < 0
        below = torch.where(negative, 2 * (slope - b_), b_ + root)
        theta = torch.where(negative, root - b_, 2 * slope * r) / below
        theta = theta + (theta.clamp(0, 1) - theta).detach()
    outside = (at != inside) & ~at.isnan()
    return _Place(index, x, width, y, height, left, right, theta, outside)


def _evaluate(p: _Place, inverse: bool) -> tuple[Tensor, Tensor]:
    """The spline, or its inverse, and the logarithm of its derivative."""
    theta, slope = p.theta, p.height / p.width
    both, rest = theta * (1 - theta), 1 - theta
    below = slope + (p.left + p.right - 2 * slope) * both
    bend = p.right * theta.square() + 2 * slope * both + p.left * rest.square()
    log = 2 * (slope / below).log() + bend.log()
    if inverse:
        return p.x + theta * p.width, -log
    return p.y + p.height * (slope * theta.square() + p.left * both) / below, log


def _sum(log: Tensor, elementwise: bool) -> Tensor:
    return log if elementwise else log.reshape(log.size(0), math.prod(log.shape[1:])).sum(1)


def _split(
    widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, tails: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors of logits from three, or from one that holds them one after the other."""
    if heights is not None and derivatives is not None:
        return widths, heights, derivatives
    bins = _bins_of(widths.size(-1), tails)
    w, h, d = widths.split((bins, bins, widths.size(-1) - 2 * bins), -1)
    return w, h, d


def _bins_of(columns: int, tails: bool) -> int:
    return (columns + 1) // 3 if tails else (columns - 1) // 3


def _check_domain(x: Tensor, s: _Settings) -> None:
    if s.tails or x.device.type != "cpu" or x.numel() == 0:
        return
    finite = torch.where(x.isfinite(), x, s.low).detach()
    low, high = (float(t) for t in finite.aminmax())
    if low < s.low - _ROUNDING or high > s.low + s.range + _ROUNDING:
        raise ValueError(
            f"x must lie in [{s.low}, {s.low + s.range}] with tails=None, got values from {low} to {high}"
        )


def _core(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, s: _Settings
) -> tuple[Tensor, Tensor]:
    """What the kernels compute, in plain PyTorch."""
    _check_domain(x, s)
    wide = accumulation(x.dtype)
    w, h, d = (t.to(wide) for t in _split(widths, heights, derivatives, s.tails))
    at = x.to(wide)
    place = _locate(at, _bins(w, h, d, s), s.inverse)
    y, log = _evaluate(place, s.inverse)
    if s.tails:
        y, log = torch.where(place.outside, at, y), torch.where(place.outside, 0.0, log)
    return y.to(x.dtype), _sum(log, s.elementwise)


def rational_quadratic_spline_reference(
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
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
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
    if parameterisation != "freia":
        return _core(x, widths, heights, derivatives, s)
    wide = accumulation(x.dtype)
    w, h, d = (t.to(wide) for t in (widths, heights, derivatives))
    at, b = x.to(wide), _bins_freia(w, h, d, tail_bound, min_bin_width, min_bin_height)
    place = _locate(at, b, inverse)
    y, log = _evaluate(place, inverse)
    scale = b.slope[..., 0]
    if inverse:
        beyond, flat = (at - b.y[..., 0]) / scale + b.x[..., 0], -scale.log()
    else:
        beyond, flat = (at - b.x[..., 0]) * scale + b.y[..., 0], scale.log()
    return torch.where(place.outside, beyond, y).to(x.dtype), _sum(
        torch.where(place.outside, flat, log), elementwise
    )


def _settings(
    inverse: bool,
    tails: str | None,
    tail_bound: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    elementwise: bool,
    parameterisation: str,
    logit_scale: float,
) -> _Settings:
    low, extent = (-float(tail_bound), 2.0 * tail_bound) if tails else (0.0, 1.0)
    if parameterisation == "nflows":
        pull = slope_pull = 0.0
    elif parameterisation == "zuko":
        slope_pull = -1.0 / math.log(min_derivative)
        min_bin_width, min_bin_height, pull = 0.0, 0.0, 2 * slope_pull
    else:  # freia's bins, moved to [0, 1]
        low, extent, min_bin_width, min_bin_height, pull, slope_pull = 0.0, 1.0, 0.0, 0.0, 0.0, 0.0
    return _Settings(
        bool(inverse),
        tails is not None,
        low,
        extent,
        float(min_bin_width),
        float(min_bin_height),
        float(min_derivative),
        float(logit_scale),
        pull,
        slope_pull,
        parameterisation != "nflows",
        bool(elementwise),
    )


def _forward_reference(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    y, logdet = _core(x, widths, heights, derivatives, _Settings(*settings))
    return y.contiguous(), logdet.contiguous()


def _backward_reference(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = _Settings(*settings)
    wide = accumulation(x.dtype)
    logits = [t.to(wide) for t in _split(widths, heights, derivatives, s.tails)]
    at, out, log = x.to(wide), dy.to(wide), dlogdet.to(wide)
    if not s.elementwise:
        log = log.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    p = _locate(at, _bins(logits[0], logits[1], logits[2], s), s.inverse)
    if s.tails:
        out, log = torch.where(p.outside, 0.0, out), torch.where(p.outside, 0.0, log)

    theta, rest, turn, slope = p.theta, 1 - p.theta, 1 - 2 * p.theta, p.height / p.width
    both, excess = theta * rest, p.left + p.right - 2 * slope
    below = slope + excess * both
    bend = p.right * theta.square() + 2 * slope * both + p.left * rest.square()
    value, jacobian = (
        (slope * theta.square() + p.left * both) / below,
        slope.square() * bend / below.square(),
    )
    log_theta = (
        2 * (p.right * theta - p.left * rest + slope * turn) / bend - 2 * excess * turn / below
    )
    if s.inverse:
        # The forward's gradients at the x that was found, with other cotangents.
        log = -log
        by_at = (out + log * log_theta / p.width) / jacobian
        by_theta, out = -out * p.width, -by_at
    else:
        by_theta = out * jacobian * p.width + log * log_theta
        by_at = by_theta / p.width
    scaled, bent = out * p.height / below, log / bend
    by_slope = scaled * (theta.square() - value * (1 - 2 * both)) + 2 * both * bent
    by_slope = by_slope + log * (2 / slope - 2 * (1 - 2 * both) / below)
    by_left = scaled * both * (1 - value) + bent * rest.square() - 2 * log * both / below
    by_right = -scaled * both * value + bent * theta.square() - 2 * log * both / below
    by_width = -(by_theta * theta + by_slope * slope) / p.width
    by_height = out * value + by_slope / p.width

    bins = torch.arange(logits[0].size(-1), device=x.device)
    knots = torch.arange(logits[0].size(-1) + 1, device=x.device)

    def axis(v: Tensor, minimum: float, by_knot: Tensor, by_extent: Tensor) -> Tensor:
        clipped = _soft_clip(v * s.scale, s.pull)
        share = torch.softmax(clipped, -1)
        direct = (bins < p.bin) * by_knot[..., None] + (bins == p.bin) * by_extent[..., None]
        g = share * (direct - (share * direct).sum(-1, keepdim=True))
        g = s.scale * g * (1 - clipped.abs() * s.pull).square()
        return s.range * (1 - minimum * v.size(-1)) * g

    dw = axis(logits[0], s.min_width, -by_theta / p.width, by_width)
    dh = axis(logits[1], s.min_height, out, by_height)
    dd = (knots == p.bin) * by_left[..., None] + (knots == p.bin + 1) * by_right[..., None]
    dd = dd[..., 1:-1] if s.tails else dd
    if s.exponent:
        clipped = _soft_clip(logits[2], s.slope_pull)
        dd = dd * clipped.exp() * (1 - clipped.abs() * s.slope_pull).square()
    else:
        dd = dd * torch.sigmoid(logits[2])
    dx = torch.where(p.outside, dy.to(wide) if s.tails else 0.0, by_at)
    dx, dw, dh, dd = (t.to(x.dtype).contiguous() for t in (dx, dw, dh, dd))
    if heights is None:
        return dx, torch.cat((dw, dh, dd), -1), x.new_empty(0), x.new_empty(0)
    return dx, dw, dh, dd
