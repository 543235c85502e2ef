"""gaussian_vlb in plain PyTorch: its formulas and those of its gradients.

`gaussian_vlb.py` says what the arguments are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import accumulation
from .diffuse import column

# The order of csrc/math/gaussian_vlb.h.
COEFFICIENTS = (
    "x0_state",
    "x0_prediction",
    "mean_x0",
    "mean_state",
    "log_min",
    "log_max",
    "log_true",
    "decode",
)


class _Values(NamedTuple):
    """What a sample's terms are made of, in the computing dtype; `open` is 0 where the clip binds."""

    x0: Tensor
    x_t: Tensor
    prediction: Tensor
    share: Tensor  # of log_max in the log-variance
    columns: dict[str, Tensor]
    predicted: Tensor
    mean: Tensor
    log_variance: Tensor
    open: Tensor
    first: Tensor


def _values(
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    clip: float | None,
) -> _Values:
    wide = accumulation(x0.dtype)
    x0, x_t, prediction = x0.to(wide), x_t.to(wide), prediction.to(wide)
    table = coefficients.to(wide).expand(x0.size(0), -1)
    c = {name: column(table[:, k], x0) for k, name in enumerate(COEFFICIENTS)}
    predicted = c["x0_state"] * x_t + c["x0_prediction"] * prediction
    opened = torch.ones_like(predicted)
    if clip is not None:
        bound = predicted.detach().clamp(-clip, clip)
        opened = (~(predicted.abs() > clip)).to(wide)
        predicted = torch.where(predicted.abs() > clip, bound, predicted)
    share = torch.ones_like(x0) if variance is None else 0.5 * (variance.to(wide) + 1)
    log_variance = c["log_max"].expand_as(x0)
    if variance is not None:
        log_variance = c["log_min"] + share * (c["log_max"] - c["log_min"])
    mean = c["mean_x0"] * predicted + c["mean_state"] * x_t
    first = (c["decode"] > 0.5).expand_as(x0)
    return _Values(x0, x_t, prediction, share, c, predicted, mean, log_variance, opened, first)


def _turned(v: _Values, half: float) -> tuple[Tensor, ...]:
    """The level [u - d, u + d] in units of the standard deviation, turned into the lower tail, where logarithms of the
    distribution function keep their precision; the turn, and whether the level is an outer one."""
    # What does not decode stands at harmless numbers, so that its derivative is no NaN.
    x, mean, log_variance = (
        torch.where(v.first, t, torch.zeros_like(t)) for t in (v.x0, v.mean, v.log_variance)
    )
    inverse = torch.exp(-0.5 * log_variance)
    z, d = (x - mean) * inverse, half * inverse
    lowest, highest = x < half - 1, x > 1 - half
    turn = torch.where(highest | (~lowest & (z > 0)), -1.0, 1.0).to(x.dtype)
    return turn * z, d, turn, inverse, lowest | highest


def _log_mass(u: Tensor, d: Tensor, outer: Tensor) -> Tensor:
    beyond = torch.special.log_ndtr(u + d)
    share = torch.where(outer, -1.0, torch.special.log_ndtr(u - d) - beyond)
    # The choice before the logarithm keeps the other branch's derivative from being NaN.
    return beyond + torch.where(outer, 0.0, torch.log(-torch.expm1(share)))


def _terms(
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    half: float,
    clip: float | None,
) -> Tensor:
    v = _values(x0, x_t, prediction, variance, coefficients, clip)
    c = v.columns
    r, distance = v.log_variance - c["log_true"], c["mean_x0"] * (v.predicted - v.x0)
    divergence = 0.5 * (torch.expm1(-r) + r + distance.square() * torch.exp(-v.log_variance))
    u, d, _, _, outer = _turned(v, half)
    return torch.where(v.first, -_log_mass(u, d, outer), divergence).flatten(1).sum(1)


def gaussian_vlb_reference(
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    *,
    levels: int = 256,
    clip: float | None = None,
) -> Tensor:
    """The definition in plain PyTorch, differentiable by autograd."""
    return _terms(x0, x_t, prediction, variance, coefficients, 1 / (levels - 1), clip)


def _slopes(v: _Values, half: float) -> tuple[Tensor, Tensor]:
    """Each term's derivatives by the model's mean and log-variance."""
    c = v.columns
    decayed = torch.exp(c["log_true"] - v.log_variance)
    distance = c["mean_x0"] * (v.predicted - v.x0)
    pull = distance * torch.exp(-v.log_variance)
    u, d, turn, inverse, outer = _turned(v, half)
    log_mass = _log_mass(u, d, outer)

    def density(z: Tensor) -> Tensor:
        return torch.exp(-0.5 * z.square() - 0.5 * math.log(2 * math.pi) - log_mass)

    upper, lower = density(u + d), torch.where(outer, 0.0, density(u - d))
    by_u, by_d = upper - lower, upper + lower
    by_mean = torch.where(v.first, turn * inverse * by_u, pull)
    by_log_variance = torch.where(v.first, u * by_u + d * by_d, 1 - decayed - distance * pull)
    return by_mean, 0.5 * by_log_variance


def _backward_reference(
    dnll: Tensor,
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    half: float,
    clip: float | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    v = _values(x0, x_t, prediction, variance, coefficients, clip)
    c = v.columns
    by_mean, by_log_variance = (column(dnll, x0) * t for t in _slopes(v, half))
    by_predicted = by_mean * c["mean_x0"] * v.open
    # The divergence sees x_t through the predicted x0 alone: both means hold the same share of x_t.
    through_state = torch.where(v.first, by_mean * c["mean_state"], 0.0)
    found = (
        torch.where(v.first, -by_mean, -by_mean * c["mean_x0"]),
        by_predicted * c["x0_state"] + through_state,
        by_predicted * c["x0_prediction"],
        by_log_variance * 0.5 * (c["log_max"] - c["log_min"]),
    )
    pairs = zip(found, wanted)
    one, two, three, four = (
        t.to(x0.dtype).contiguous() if want else x0.new_empty(0) for t, want in pairs
    )
    return one, two, three, four


def _coefficients_gradient(
    dnll: Tensor,
    x0: Tensor,
    x_t: Tensor,
    prediction: Tensor,
    variance: Tensor | None,
    coefficients: Tensor,
    half: float,
    clip: float | None,
) -> Tensor:
    v = _values(x0, x_t, prediction, variance, coefficients, clip)
    c = v.columns
    by_mean, by_log_variance = _slopes(v, half)
    by_predicted = by_mean * c["mean_x0"] * v.open
    by_true = 0.5 * torch.expm1(c["log_true"] - v.log_variance)
    columns = (
        by_predicted * v.x_t,
        by_predicted * v.prediction,
        by_mean * torch.where(v.first, v.predicted, v.predicted - v.x0),
        torch.where(v.first, by_mean * v.x_t, 0.0),
        by_log_variance * (1 - v.share),
        by_log_variance * v.share,
        torch.where(v.first, 0.0, by_true),
        torch.zeros_like(v.x0),
    )
    rows = torch.stack([t.flatten(1).sum(1) for t in columns], 1) * dnll[:, None]
    return rows if coefficients.dim() == 2 else rows.sum(0)
