"""The way from data to noise, as training draws from it and as samplers go back on it.

Levels   the levels of a DDPM, evenly drawn
Sigmas   EDM: alpha = 1, ln sigma normal (Karras et al. 2022, table 1)
Path     flow matching: alpha = 1 - t, sigma = t, t even
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.diffusion.prediction import edm_input_scale, edm_time
from pyfastgan.diffusion.schedule import NoiseSchedule
from pyfastgan.ops import random_normal, random_uniform

SCHEDULES = ("linear", "cosine", "scaled_linear", "sigmoid")
WEIGHTINGS = ("none", "min-snr")


class Times(NamedTuple):
    """Of each sample of a batch, (N,): its noise, what the network is told, and its level where there are levels."""

    alpha: Tensor
    sigma: Tensor
    time: Tensor
    level: Tensor | None = None


def _uniform(count: int, device: torch.device, seed: int, stream: int, offset: int) -> Tensor:
    return random_uniform(
        (count, 1), seed, stream=stream, sample_offset=offset, device=device, dtype=torch.float32
    )[:, 0]


class Levels:
    """The levels of a variance-preserving schedule, each as often as the others.

    Args:
        schedule: With the prediction eps, x0 or v.
        weighting: "none", or "min-snr" (Hang et al. 2023): the loss of x_0 weighs min(SNR, gamma).
        gamma: Of that.
    """

    time_scale = 1.0

    def __init__(
        self, schedule: NoiseSchedule, weighting: str = "none", gamma: float = 5.0
    ) -> None:
        check_choice("weighting", weighting, WEIGHTINGS)
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        self.schedule, self.weighting, self.gamma = schedule, weighting, gamma
        self.prediction = schedule.prediction

    def draw(self, count: int, device: torch.device, *place: int) -> Times:
        """Times for a batch; `place` is seed, stream, sample_offset."""
        level = (_uniform(count, device, *place) * len(self.schedule)).long()
        return Times(*self.schedule.coefficients(level), level.float(), level)

    def weight(self, times: Times) -> Tensor | None:
        """Of each sample's squared error."""
        if self.weighting == "none":
            return None
        snr = (times.alpha / times.sigma) ** 2
        least = snr.clamp(max=self.gamma)
        return {"eps": least / snr, "x0": least, "v": least / (snr + 1)}[self.prediction]

    def grid(self, steps: int, finite: bool) -> tuple[NoiseSchedule, Tensor | None]:
        """A schedule and its timesteps for a sampler.

        Args:
            steps: How many.
            finite: Whether alpha must not be 0 where sampling begins.
        """
        timesteps = self.schedule.timesteps(steps, "trailing")
        if finite and float(self.schedule.alpha_squared[-1]) == 0:
            timesteps[0] -= 1
        return self.schedule, timesteps

    def bounds(self) -> tuple[float, float]:
        """The least and the largest finite sigma / alpha."""
        ratio = self.schedule.ratio
        return float(ratio[0]), float(ratio[ratio.isfinite()][-1])

    def at(self, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, what the network is told and its input multiplied by, where sigma / alpha is `ratio`."""
        alpha = 1 / (1 + ratio**2) ** 0.5
        time = self.schedule.at_ratio(ratio)
        return alpha, ratio * alpha, time, torch.ones_like(ratio)


class Sigmas:
    """EDM: sigma is log-normal in training, and goes down Karras's levels in sampling."""

    prediction = "edm"
    # ln(sigma) / 4 of sigma from 0.002 to 80 then spans what levels span.
    time_scale = 250.0

    def __init__(
        self,
        mean: float = -1.2,
        deviation: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        self.mean, self.deviation = mean, deviation
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def draw(self, count: int, device: torch.device, *place: int) -> Times:
        """Times for a batch; `place` is seed, stream, sample_offset."""
        seed, stream, offset = place
        z = random_normal(
            (count, 1),
            seed,
            stream=stream,
            sample_offset=offset,
            device=device,
            dtype=torch.float32,
        )
        sigma = torch.exp(self.mean + self.deviation * z[:, 0])
        return Times(torch.ones_like(sigma), sigma, edm_time(sigma))

    def weight(self, times: Times) -> Tensor | None:
        """None: the network's own error has weight 1 (see `target`)."""
        return None

    def grid(self, steps: int, finite: bool) -> tuple[NoiseSchedule, Tensor | None]:
        """A schedule for a sampler, all of whose levels are gone through."""
        options: dict[str, Any] = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        return NoiseSchedule.karras(steps, prediction="edm", **options), None

    def bounds(self) -> tuple[float, float]:
        """The least and the largest sigma."""
        return self.sigma_min, self.sigma_max

    def at(self, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, what the network is told and what its input is multiplied by."""
        return torch.ones_like(ratio), ratio, edm_time(ratio), edm_input_scale(ratio)


class Path:
    """The straight path of flow matching; the network predicts the velocity z - x_0."""

    prediction = "flow"
    time_scale = 1000.0

    def draw(self, count: int, device: torch.device, *place: int) -> Times:
        """Times for a batch; `place` is seed, stream, sample_offset."""
        t = _uniform(count, device, *place)
        return Times(1 - t, t, t)

    def weight(self, times: Times) -> Tensor | None:
        """None: every time weighs the same."""
        return None

    def grid(self, steps: int, finite: bool) -> tuple[NoiseSchedule, Tensor | None]:
        """A schedule for a sampler, from t = 1, or from just before it."""
        schedule = NoiseSchedule.flow(steps)
        if not finite:
            return schedule, None
        t = schedule.time.clone()
        t[-1] = 0.999
        return NoiseSchedule("flow", (1 - t) ** 2, t**2, t, prediction="flow"), None


Process = Levels | Sigmas | Path
OBJECTIVES = ("diffusion", "edm", "flow")


def make_process(
    objective: str,
    *,
    schedule: str = "linear",
    levels: int = 1000,
    prediction: str = "eps",
    zero_terminal_snr: bool = False,
    weighting: str = "none",
    gamma: float = 5.0,
) -> Process:
    """The process of an objective: "diffusion", which alone has the other arguments, "edm" or "flow"."""
    check_choice("objective", objective, OBJECTIVES)
    if objective == "edm":
        return Sigmas()
    if objective == "flow":
        return Path()
    check_choice("schedule", schedule, SCHEDULES)
    table = getattr(NoiseSchedule, schedule)(levels, prediction=prediction)
    return Levels(table.zero_terminal_snr() if zero_terminal_snr else table, weighting, gamma)
