"""What a network predicts, and how x_0 and the noise follow: both are linear in x_t = alpha x_0 + sigma z and in the
prediction m.

    eps    m = z (Ho et al. 2020)
    x0     m = x_0
    v      m = alpha z - sigma x_0 (Salimans & Ho 2022), on any path
    flow   m = z - x_0, the velocity of the straight path (Lipman et al. 2023)
    edm    x_0 = c_skip x + c_out m, with m = F(c_in x, c_noise) and alpha = 1 (Karras et al. 2022, table 1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyfastgan._names import check_choice

SIGMA_DATA = 0.5


class Pair(NamedTuple):
    """The factors of x_t and of the prediction."""

    state: Tensor
    prediction: Tensor


class Prediction(NamedTuple):
    """x_0 and the noise from x_t and a prediction, and what the network should have said: functions of alpha and
    sigma."""

    x0: Callable[[Tensor, Tensor], Pair]
    noise: Callable[[Tensor, Tensor], Pair]


def _zero(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def _one(like: Tensor) -> Tensor:
    return torch.ones_like(like)


def _skip(sigma: Tensor) -> Tensor:
    return SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def _out(sigma: Tensor) -> Tensor:
    return sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2) ** 0.5


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(
        lambda a, s: Pair(1 / a, -s / a),
        lambda a, s: Pair(_zero(a), _one(a)),
    ),
    "x0": Prediction(
        lambda a, s: Pair(_zero(a), _one(a)),
        lambda a, s: Pair(1 / s, -a / s),
    ),
    "v": Prediction(
        lambda a, s: Pair(a / (a**2 + s**2), -s / (a**2 + s**2)),
        lambda a, s: Pair(s / (a**2 + s**2), a / (a**2 + s**2)),
    ),
    "flow": Prediction(
        lambda a, s: Pair(1 / (a + s), -s / (a + s)),
        lambda a, s: Pair(1 / (a + s), a / (a + s)),
    ),
    "edm": Prediction(
        lambda a, s: Pair(_skip(s), _out(s)),
        lambda a, s: Pair((1 - _skip(s)) / s, -_out(s) / s),
    ),
}


def target(prediction: str, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network should predict of samples (N, ...) at alpha, sigma (N,).

    For `edm` it is (x_0 - c_skip x) / c_out: the unweighted error of the network then has weight 1, which is EDM's
    loss weight times c_out^2.
    """
    check_choice("prediction", prediction, PREDICTIONS)
    a, s = (t.reshape(-1, *[1] * (x0.dim() - 1)).to(x0.dtype) for t in (alpha, sigma))
    if prediction == "eps":
        return noise
    if prediction == "x0":
        return x0
    if prediction == "v":
        return a * noise - s * x0
    if prediction == "flow":
        return noise - x0
    return (x0 - _skip(s) * (a * x0 + s * noise)) / _out(s)


def edm_input_scale(sigma: Tensor) -> Tensor:
    """c_in, which makes the network's input of unit variance."""
    return 1 / (sigma**2 + SIGMA_DATA**2) ** 0.5


def edm_time(sigma: Tensor) -> Tensor:
    """c_noise, what the network is told of sigma."""
    return torch.log(sigma) / 4
