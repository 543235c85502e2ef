"""Noise schedules: tables of alpha and sigma, from the least noise to the most, where x_t = alpha x_0 + sigma z.

Three paths from data to noise:

    vp     alpha^2 + sigma^2 = 1: DDPM (Ho et al. 2020), improved DDPM's cosine (Nichol & Dhariwal 2021)
    ve     alpha = 1: EDM (Karras et al. 2022)
    flow   alpha = 1 - t, sigma = t: flow matching (Lipman et al. 2023), rectified flow

Tables are made in float64, and kernels get float32 coefficients. `from_diffusers` keeps that library's
float32 tables, whose rounding its numbers depend on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.diffusion.diffusers_config import diffusers_tables
from pyfastgan.diffusion.grid import Grid
from pyfastgan.diffusion.prediction import PREDICTIONS
from pyfastgan.ops import diffuse, gaussian_vlb
from pyfastgan.ops._common import accumulation, check_float
from pyfastgan.ops.gaussian_vlb import COEFFICIENTS as VLB_COEFFICIENTS
from pyfastgan.training.config import check_number

PATHS = ("vp", "ve", "flow")
SPACINGS = ("leading", "linspace", "trailing")


def _check_steps(steps: object) -> None:
    check_number("steps", steps, int, at_least=1)


class NoiseSchedule:
    """A table of noise levels; level 0 has the least noise.

    Args:
        path: vp, ve or flow.
        alpha_squared: (T,) float64 (float32 keeps another library's rounding).
        sigma_squared: (T,) of the same dtype, strictly growing beside alpha_squared.
        time: (T,) what a network is told of each level: the level's number by default; sigma or t of
            the continuous paths.
        prediction: what the network predicts, one of `PREDICTIONS`; samplers take it from here.

    Raises:
        ValueError: a table is of another length, not finite, or its noise does not grow.
    """

    def __init__(
        self,
        path: str,
        alpha_squared: Tensor,
        sigma_squared: Tensor,
        time: Tensor | None = None,
        *,
        prediction: str = "eps",
    ) -> None:
        check_choice("path", path, PATHS)
        check_choice("prediction", prediction, PREDICTIONS)
        check_float("alpha_squared", alpha_squared)
        check_float("sigma_squared", sigma_squared)
        shape = alpha_squared.shape
        if len(shape) != 1 or shape != sigma_squared.shape or not len(alpha_squared):
            raise ValueError(
                "alpha_squared and sigma_squared must have shape (T,) with at least one level, "
                f"got {tuple(shape)} and {tuple(sigma_squared.shape)}"
            )
        if time is not None and time.shape != shape:
            raise ValueError(f"time must have shape {tuple(shape)}, got {tuple(time.shape)}")
        if not (alpha_squared.isfinite().all() and sigma_squared.isfinite().all()):
            raise ValueError("alpha_squared and sigma_squared must be finite")
        if not (alpha_squared >= 0).all() or not (sigma_squared > 0).all():
            raise ValueError(
                "alpha_squared must not be negative, and sigma_squared must be positive"
            )
        self.path = path
        self.prediction = prediction
        self.alpha_squared = alpha_squared
        self.sigma_squared = sigma_squared
        self.time = torch.arange(len(alpha_squared)) if time is None else time
        self._tables: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self.ratio = (sigma_squared / alpha_squared) ** 0.5
        if not (self.ratio.diff() > 0).all():
            k = int((~(self.ratio.diff() > 0)).nonzero()[0])
            raise ValueError(
                f"sigma / alpha must grow from level to level, but goes from {self.ratio[k]:.6g} "
                f"to {self.ratio[k + 1]:.6g} after level {k}"
            )

    def __len__(self) -> int:
        return len(self.alpha_squared)

    @property
    def alpha(self) -> Tensor:
        return self.alpha_squared**0.5

    @property
    def sigma(self) -> Tensor:
        return self.sigma_squared**0.5

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2, for the weights of losses."""
        return self.alpha_squared / self.sigma_squared

    @classmethod
    def from_betas(cls, betas: Tensor, **options: Any) -> NoiseSchedule:
        """The variances that each step of a DDPM adds, in [0, 1]."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if not ((betas >= 0) & (betas <= 1)).all():
            raise ValueError("betas must lie in [0, 1]")
        log_alpha_squared = torch.log1p(-betas).cumsum(0)
        return cls("vp", log_alpha_squared.exp(), -torch.expm1(log_alpha_squared), **options)

    @classmethod
    def linear(
        cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02, **options: Any
    ) -> NoiseSchedule:
        """Betas that grow linearly (Ho et al. 2020)."""
        _check_steps(steps)
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64), **options)

    @classmethod
    def scaled_linear(
        cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012, **options: Any
    ) -> NoiseSchedule:
        """Square roots of betas that grow linearly (latent diffusion, Rombach et al. 2022)."""
        _check_steps(steps)
        if not (start >= 0 and end >= 0):
            raise ValueError(f"start and end must not be negative, got {start} and {end}")
        roots = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64)
        return cls.from_betas(roots**2, **options)

    @classmethod
    def sigmoid(
        cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02, **options: Any
    ) -> NoiseSchedule:
        """Betas on a logistic curve from -6 to 6 (GeoDiff, Xu et al. 2022)."""
        _check_steps(steps)
        curve = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
        return cls.from_betas(curve * (end - start) + start, **options)

    @classmethod
    def cosine(
        cls, steps: int = 1000, offset: float = 0.008, most: float = 0.999, **options: Any
    ) -> NoiseSchedule:
        """alpha^2 = cos^2 of a quarter turn, each beta at most `most` (Nichol & Dhariwal 2021)."""
        _check_steps(steps)
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls.from_betas((1 - curve[1:] / curve[:-1]).clamp(max=most), **options)

    @classmethod
    def karras(
        cls,
        steps: int = 18,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        **options: Any,
    ) -> NoiseSchedule:
        """Sigmas whose rho-th root is evenly spaced (Karras et al. 2022, equation 5); one alone is `sigma_max`."""
        _check_steps(steps)
        if not rho > 0:
            raise ValueError(f"rho must be positive, got {rho}")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(
                f"sigma_min must lie between 0 and sigma_max, got {sigma_min} and {sigma_max}"
            )
        roots = torch.linspace(
            sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64
        )
        return cls.from_sigmas(roots.flip(0) ** rho, **options)

    @classmethod
    def from_sigmas(cls, sigmas: Tensor, **options: Any) -> NoiseSchedule:
        """The variance-exploding path through given sigmas, growing; the network is told sigma."""
        sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
        return cls("ve", torch.ones_like(sigmas), sigmas**2, sigmas, **options)

    @classmethod
    def flow(cls, steps: int = 100, shift: float = 1.0, **options: Any) -> NoiseSchedule:
        """t = 1 / steps to 1; `shift` s moves t to s t / (1 + (s - 1) t) (Esser et al. 2024). The network is told t,
        and predicts the velocity z - x_0."""
        _check_steps(steps)
        if not shift > 0:
            raise ValueError(f"shift must be positive, got {shift}")
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        t = shift * t / (1 + (shift - 1) * t)
        return cls("flow", (1 - t) ** 2, t**2, t, **{"prediction": "flow", **options})

    def zero_terminal_snr(self) -> NoiseSchedule:
        """The last level becomes noise alone, the first stays (Lin et al. 2024, algorithm 1). Such a schedule needs a
        prediction of x_0 or v: noise says nothing about data there."""
        if self.path != "vp":
            raise ValueError(f"path must be vp for a zero terminal signal, got {self.path!r}")
        root = self.alpha_squared**0.5
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        prediction = "v" if self.prediction == "eps" else self.prediction
        return NoiseSchedule("vp", root**2, 1 - root**2, self.time, prediction=prediction)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The table of a scheduler of the `diffusers` library, in its float32 arithmetic.

        Args:
            config: the scheduler's configuration, `scheduler.config`. Keys that choose a sampler's own behaviour are
                known and left to the sampler.

        Raises:
            ValueError: a key is not known, or asks for what is not supported.
        """
        path, *tables, prediction = diffusers_tables(config)
        return cls(path, *tables, prediction=prediction)

    def coefficients(
        self, level: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """alpha and sigma (N,) for levels (N,), on their device.

        Raises:
            TypeError, ValueError: `level` is no int64 tensor (N,), or lies outside of the schedule
                (on a GPU, where a look would wait for the device, torch's indexing says so).
        """
        self._check_level(level)
        alpha, sigma = self._there("", level, dtype)[:, level]
        return alpha, sigma

    def _check_level(self, level: Tensor) -> None:
        if not isinstance(level, Tensor) or level.dtype != torch.int64 or level.dim() != 1:
            raise TypeError(f"level must be an int64 tensor (N,), got {level!r:.80}")
        if level.device.type == "cpu" and level.numel():
            low, high = int(level.min()), int(level.max())
            if low < 0 or high >= len(self):
                raise ValueError(
                    f"level must lie in [0, {len(self)}), the schedule's, got {low if low < 0 else high}"
                )

    def add_noise(
        self, x0: Tensor, level: Tensor, seed: int | Tensor | None = None, **options: Any
    ) -> Any:
        """x_t and the noise at levels (N,): `pyfastgan.ops.diffuse` with this schedule's coefficients."""
        return diffuse(x0, *self.coefficients(level, accumulation(x0.dtype)), seed, **options)

    def vlb_coefficients(
        self,
        level: Tensor,
        prediction: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Rows (N, 8) for `pyfastgan.ops.gaussian_vlb`, at each level the term of the step down from it: the
        discretised likelihood at level 0. The model's variance lies between the posterior's and beta, in logarithms
        (Nichol & Dhariwal 2021, equation 15); without one it is beta."""
        self._check_level(level)
        return self._there(prediction or self.prediction, level, dtype)[level]

    def _there(self, prediction: str, level: Tensor, dtype: torch.dtype) -> Tensor:
        """The table of a prediction's bound, or alpha and sigma, where levels lie. It is kept: another copy would wait
        for the device in every step."""
        key = (prediction, level.device, dtype)
        if key not in self._tables:
            table = torch.stack((self.alpha, self.sigma))
            table = self._vlb_table(prediction) if prediction else table
            self._tables[key] = table.to(dtype=dtype, device=level.device)
        return self._tables[key]

    def _vlb_table(self, prediction: str) -> Tensor:
        grid = self.grid()
        a, s = grid.alpha_squared.double(), grid.sigma_squared.double()
        share = a[:-1] / a[1:]
        beta = s[:-1] - share * s[1:]
        posterior = beta * s[1:] / s[:-1]
        # Level 0 has none: its neighbour's stands there, or beta where there is no neighbour.
        last = posterior[-2:-1] if len(self) > 1 else beta
        log_posterior = torch.log(torch.cat((posterior[:-1], last)))
        x0_state, x0_prediction = PREDICTIONS[prediction].x0(a[:-1] ** 0.5, s[:-1] ** 0.5)
        columns = {
            "x0_state": x0_state,
            "x0_prediction": x0_prediction,
            "mean_x0": a[1:] ** 0.5 * beta / s[:-1],
            "mean_state": share**0.5 * s[1:] / s[:-1],
            "log_min": log_posterior,
            "log_max": torch.log(beta),
            "log_true": log_posterior,
            "decode": (torch.arange(len(self)) == len(self) - 1).double(),
        }
        rows = [columns[name] * torch.ones_like(beta) for name in VLB_COEFFICIENTS]
        return torch.stack(rows, 1).flip(0)

    def vlb(
        self,
        x0: Tensor,
        x_t: Tensor,
        prediction: Tensor,
        variance: Tensor | None,
        level: Tensor,
        **options: Any,
    ) -> Tensor:
        """`pyfastgan.ops.gaussian_vlb` with this schedule's rows: nats (N,)."""
        rows = self.vlb_coefficients(level, dtype=accumulation(x0.dtype))
        return gaussian_vlb(x0, x_t, prediction, variance, rows, **options)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(q(x_T | x_0) || N(0, 1)) at the last level, in nats (N,), of the vp path."""
        a, s = self.alpha_squared[-1].double(), self.sigma_squared[-1].double()
        each = 0.5 * (s - 1 - torch.log(s) + a * x0.double().square())
        return each.flatten(1).sum(1)

    def timesteps(self, steps: int, spacing: str = "leading", offset: int = 0) -> Tensor:
        """Levels from the most noise to the least: `leading` begins at level `offset`, `trailing` ends at the last
        level, `linspace` does both (Lin et al. 2024, table 2)."""
        check_choice("spacing", spacing, SPACINGS)
        total = len(self)
        check_number("steps", steps, int, at_least=-math.inf)
        if not 1 <= steps <= total:
            raise ValueError(f"steps must lie in [1, {total}], the schedule's levels, got {steps}")
        k = torch.arange(steps, dtype=torch.float64)
        if spacing == "leading":
            levels = k * (total // steps) + offset
        elif spacing == "linspace":
            levels = torch.linspace(0, total - 1, steps, dtype=torch.float64).round()
        else:
            levels = (total - k * (total / steps)).round().flip(0) - 1
        if levels.max() >= total or levels.min() < 0:
            raise ValueError(
                f"offset must keep the levels in [0, {total}), got {offset} with {steps} steps"
            )
        return levels.long().flip(0)

    def grid(
        self, timesteps: Tensor | Sequence[float] | None = None, final: float | None = 0.0
    ) -> Grid:
        """The levels of a sampler.

        Args:
            timesteps: levels, falling; numbers between two levels interpolate sigma / alpha of the vp path. All
                levels by default.
            final: sigma / alpha where the sampler ends; None ends at the last of the levels.

        Raises:
            ValueError: a timestep lies outside of the schedule, or noise does not fall on the way.
        """
        dtype = self.ratio.dtype
        t = torch.arange(len(self) - 1, -1, -1) if timesteps is None else torch.as_tensor(timesteps)
        if t.dim() != 1 or t.numel() == 0:
            raise ValueError(f"timesteps must have shape (steps,), got {tuple(t.shape)}")
        if not (t.min() >= 0 and t.max() <= len(self) - 1):
            raise ValueError(f"timesteps must lie in [0, {len(self) - 1}], got {t.tolist()}")
        whole = t.long()
        if torch.equal(whole.to(t.dtype), t):
            a, s, ratio = (v[whole] for v in (self.alpha_squared, self.sigma_squared, self.ratio))
            time = self.time[whole]
        elif self.path == "vp":
            part = (t - whole).double()
            above = (whole + 1).clamp(max=len(self) - 1)
            low, high = self.ratio.double()[whole], self.ratio.double()[above]
            ratio = (low + part * (high - low)).to(dtype)
            a, s, time = 1 / (1 + ratio**2), ratio**2 / (1 + ratio**2), t
        else:
            raise ValueError(f"timesteps must be whole numbers on the {self.path} path")
        if final is None and len(t) == 1:
            raise ValueError(f"timesteps must be two or more where final is None, got {t.tolist()}")
        if final is not None and not final >= 0:
            raise ValueError(f"final must not be negative, got {final}")
        if final is not None:
            end = torch.tensor([final], dtype=dtype)
            end_time = self.at_ratio(end) if final > 0 else torch.zeros_like(time[:1])
            time = torch.cat((time, end_time))
            end_alpha = {"vp": 1 / (1 + end**2), "ve": end * 0 + 1, "flow": 1 / (1 + end) ** 2}[
                self.path
            ]
            a = torch.cat((a, end_alpha))
            s, ratio = torch.cat((s, end**2 * end_alpha)), torch.cat((ratio, end))
        if not (ratio.diff() < 0).all():
            raise ValueError(f"sigma / alpha must fall on a sampler's way, got {ratio.tolist()}")
        return Grid(self.path, time, a, s, ratio)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        """What the network is told where sigma / alpha is `ratio`: exact on continuous paths, between levels
        interpolated in ln(sigma / alpha)."""
        if self.path == "ve":
            return ratio
        if self.path == "flow":
            t = ratio / (1 + ratio)
            return t * (self.time[-1] / (self.sigma_squared[-1] ** 0.5))
        known, wanted = self.ratio.double().log(), ratio.double().log()
        k = torch.searchsorted(known, wanted).clamp(1, len(self) - 1)
        share = ((wanted - known[k - 1]) / (known[k] - known[k - 1])).clamp(0, 1)
        time = self.time.double()
        return time[k - 1] + share * (time[k] - time[k - 1])
