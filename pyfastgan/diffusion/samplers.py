"""The samplers that take a network's prediction as it comes: DDPM, DDIM, Euler, Heun, EDM.

In what follows r = sigma / alpha, l = -ln r, and primes mark the level that a step goes to. The
ordinary differential equation of sampling, in the variable x / alpha and the time r, is
d(x / alpha) / dr = (x / alpha - x_0(x)) / r (Karras et al. 2022; Song et al. 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.diffusion.grid import Grid
from pyfastgan.diffusion.prediction import PREDICTIONS
from pyfastgan.diffusion.sampler import Number, Sampler, Stage
from pyfastgan.diffusion.schedule import NoiseSchedule
from pyfastgan.ops import diffuse
from pyfastgan.ops._common import accumulation


class DDPM(Sampler):
    """Ancestral sampling from the posterior q(x' | x, x_0) (Ho, Jain & Abbeel 2020), over any levels.

    Args:
        variance: "small" is the posterior's, "large" that of the forward step, "learned" lies
            between them as the network says (Nichol & Dhariwal 2021).
    """

    def __init__(
        self, schedule: NoiseSchedule, *args: Any, variance: str = "small", **options: Any
    ) -> None:
        check_choice("variance", variance, ("small", "large", "learned"))
        self.variance = variance
        super().__init__(schedule, *args, **options)

    def make_stages(self, grid: Grid) -> list[Stage]:
        a, s = grid.alpha_squared, grid.sigma_squared
        stages = []
        for k in range(self.steps):
            share = a[k] / a[k + 1]
            step = 1 - share if grid.path == "vp" else s[k] - share * s[k + 1]
            posterior = s[k + 1] / s[k] * step
            row: dict[str, Number] = {
                "x0": a[k + 1] ** 0.5 * step / s[k],
                "state": share**0.5 * s[k + 1] / s[k],
            }
            noise = k + 1 < self.steps or bool(s[-1] > 0)
            if noise and self.variance == "learned":
                row |= {"noise": 1.0, "log_min": torch.log(posterior), "log_max": torch.log(step)}
            elif noise:
                row["noise"] = (posterior if self.variance == "small" else step) ** 0.5
            stages.append(Stage(k, row, noise=noise))
        return stages


class DDIM(Sampler):
    """Song, Meng & Ermon 2021: the noise is what the network says (of the unclipped x_0), times a part of the fresh
    noise of the posterior, `eta`.

    Args:
        eta: 0 is deterministic, 1 has the posterior's variance.
        clipped_noise: whether the noise is taken from the bounded x_0.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *args: Any,
        eta: float = 0.0,
        clipped_noise: bool = False,
        **options: Any,
    ) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        self.eta, self.clipped_noise = eta, clipped_noise
        super().__init__(schedule, *args, **options)

    def make_stages(self, grid: Grid) -> list[Stage]:
        a, s = grid.alpha_squared, grid.sigma_squared
        stages = []
        for k in range(self.steps):
            share = a[k] / a[k + 1]
            step = 1 - share if grid.path == "vp" else s[k] - share * s[k + 1]
            deviation = self.eta * (s[k + 1] / s[k] * step) ** 0.5
            towards = (s[k + 1] - deviation**2) ** 0.5
            row: dict[str, Number]
            if self.clipped_noise:
                root = s[k] ** 0.5
                row = {
                    "state": towards / root,
                    "x0": a[k + 1] ** 0.5 - towards * a[k] ** 0.5 / root,
                }
            else:
                # From the squares, whose roots other libraries take too.
                state, prediction = PREDICTIONS[self.prediction].noise(a[k] ** 0.5, s[k] ** 0.5)
                row = {
                    "x0": a[k + 1] ** 0.5,
                    "state": towards * state,
                    "prediction": towards * prediction,
                }
            noise = self.eta > 0 and bool(s[k + 1] > 0)
            stages.append(Stage(k, {**row, "noise": deviation}, noise=noise))
        return stages


def straight(
    alpha: Tensor, sigma: Tensor, next_alpha: Tensor, next_sigma: Tensor
) -> dict[str, Number]:
    """Along the line from the state to x_0, in the variable x / alpha."""
    share = next_sigma / sigma
    return {"state": share, "x0": next_alpha - share * alpha}


class Euler(Sampler):
    """Euler's method in r, first order; on a vp schedule this is DDIM."""

    def make_stages(self, grid: Grid) -> list[Stage]:
        a, s = grid.alpha, grid.sigma
        return [Stage(k, straight(a[k], s[k], a[k + 1], s[k + 1])) for k in range(self.steps)]


def _heun(level: int, goal: int, a: tuple[Tensor, Tensor], r: tuple[Tensor, Tensor]) -> list[Stage]:
    """Euler's step to `goal`, then the mean of the slopes at both ends; only the first where `goal` is data.

    `level` names the network's place, whose alpha and ratio stand at a[0] and r[0].
    """
    first = Stage(level, straight(a[0], a[0] * r[0], a[1], a[1] * r[1]))
    if float(r[1]) == 0:
        return [first]
    h = r[1] - r[0]
    row: dict[str, Number] = {
        "state": h / (2 * r[1]),
        "x0": -a[1] * h / (2 * r[1]),
        "history1": a[1] / a[0] * (1 + h / (2 * r[0])),
        "history2": -a[1] * h / (2 * r[0]),
    }
    first.keep = {"state": "before", "x0": "x0 before"}
    return [first, Stage(goal, row, ("before", "x0 before"))]


class Heun(Sampler):
    """Heun's method in r, second order; two network calls a step, one where a step ends at data."""

    def make_stages(self, grid: Grid) -> list[Stage]:
        a, r = grid.alpha, grid.ratio
        pairs = (_heun(k, k + 1, (a[k], a[k + 1]), (r[k], r[k + 1])) for k in range(self.steps))
        return [stage for pair in pairs for stage in pair]


class EDM(Sampler):
    """Karras et al. 2022, algorithm 2: Heun's method, with fresh noise before the steps between two sigmas ("churn").

    Args:
        churn: S_churn; 0 is deterministic.
        noise_scale: S_noise.
        churn_from: S_min.
        churn_to: S_max.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *args: Any,
        churn: float = 0.0,
        noise_scale: float = 1.0,
        churn_from: float = 0.0,
        churn_to: float = float("inf"),
        **options: Any,
    ) -> None:
        if schedule.path != "ve":
            raise ValueError(f"schedule must be of the ve path for EDM, got {schedule.path!r}")
        for name, value in (("churn", churn), ("noise_scale", noise_scale)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.churn, self.noise_scale = churn, noise_scale
        self.churn_range = (churn_from, churn_to)
        super().__init__(schedule, *args, **options)

    def make_stages(self, grid: Grid) -> list[Stage]:
        r = grid.ratio
        low, high = self.churn_range
        gamma = min(self.churn / self.steps, 2**0.5 - 1)
        raised = [v * (1 + gamma) if gamma and low <= float(v) <= high else v for v in r[:-1]]
        extra = (raised[0] ** 2 - r[0] ** 2).clamp(min=0) ** 0.5
        self.first_noise = float(extra * self.noise_scale)
        stages: list[Stage] = []
        one = torch.ones_like(r[0])
        for k in range(self.steps):
            level = k if raised[k] is r[k] or bool(raised[k] == r[k]) else self.add_level(raised[k])
            stages += _heun(level, k + 1, (one, one), (raised[k], r[k + 1]))
            if k + 1 < self.steps and bool(raised[k + 1] > r[k + 1]):
                # The noise before the next step comes in the same pass.
                extra = (raised[k + 1] ** 2 - r[k + 1] ** 2) ** 0.5
                stages[-1].row["noise"] = extra * self.noise_scale
                stages[-1].noise = True
        return stages

    def begin(self, x: Tensor, seed: int | Tensor | None, **place: Any) -> Tensor:
        if self.first_noise == 0:
            return x
        one = torch.ones(x.size(0), device=x.device, dtype=accumulation(x.dtype))
        place["stream"] += len(self.stages) + 1
        return diffuse(x, one, one * self.first_noise, seed, return_noise=False, **place)[0]
