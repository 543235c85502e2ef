"""Samplers: each is a list of stages, a row of coefficients for `pyfastgan.ops.denoise_step` at each network call.

A stage tells the network a time, takes its prediction, and replaces the state by a linear combination
of the state, the predicted x_0, the prediction, what earlier stages kept, and noise. All rows are
made beforehand, so that a step decides nothing and waits for nothing: a whole loop compiles, and
fits a CUDA graph.

In what follows r = sigma / alpha, l = -ln r, and primes mark the level that a step goes to. The
ordinary differential equation of sampling, in the variable x / alpha and the time r, is
d(x / alpha) / dr = (x / alpha - x_0(x)) / r (Karras et al. 2022; Song et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.diffusion.prediction import PREDICTIONS, edm_input_scale, edm_time
from pyfastgan.diffusion.schedule import Grid, NoiseSchedule
from pyfastgan.ops import denoise_step, diffuse, random_normal
from pyfastgan.ops.denoise_step import COEFFICIENTS

Network = Callable[..., Tensor]
Number = float | Tensor


@dataclass
class Stage:
    """One network call and the update after it.

    Args:
        level: where in the sampler's list of levels the state stands.
        row: the coefficients, by name; those of x_0 come from the prediction unless they are here.
        history: what was kept, for history1 to history3.
        keep: names under which the state before the update ("state") and x_0 ("x0") are kept.
        noise: whether the update adds noise.
    """

    level: int
    row: dict[str, Number]
    history: tuple[str, ...] = ()
    keep: dict[str, str] = field(default_factory=dict)
    noise: bool = False


class Sampler:
    """What all samplers share: levels, rows and the loop.

    Args:
        schedule: the noise schedule.
        timesteps: its levels that are gone through, falling, as `schedule.timesteps` gives; all of
            them by default.
        prediction: what the network predicts; by default what the schedule says.
        clip: the bound on x_0, or with `quantile` the least one (see `denoise_step`).
        quantile: dynamic thresholding.
        quantile_limit: the most that a dynamic threshold may be.
        final: sigma / alpha where sampling ends; None ends at the last of the timesteps.

    Raises:
        ValueError: a timestep lies outside of the schedule, noise does not fall, or the prediction
            does not give x_0 at a level without signal.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        timesteps: Tensor | Sequence[float] | None = None,
        *,
        prediction: str | None = None,
        clip: float | None = None,
        quantile: float | None = None,
        quantile_limit: float | None = None,
        final: float | None = 0.0,
    ) -> None:
        self.schedule = schedule
        self.prediction = prediction or schedule.prediction
        check_choice("prediction", self.prediction, PREDICTIONS)
        if self.prediction == "edm" and schedule.path != "ve":
            raise ValueError(f"prediction 'edm' needs a ve schedule, got {schedule.path!r}")
        self.bounds: dict[str, Any] = {
            "clip": clip,
            "quantile": quantile,
            "quantile_limit": quantile_limit,
        }
        self.grid = schedule.grid(timesteps, final)
        # Levels between those of the grid, for samplers that look there, come behind them.
        self.alphas, self.sigmas = list(self.grid.alpha), list(self.grid.sigma)
        self.times = list(self.grid.time)
        self.stages = self.make_stages(self.grid)
        self._tables: dict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor]] = {}
        self.table = torch.stack([self._row(stage) for stage in self.stages])
        if not self.table.isfinite().all():
            k = int((~self.table.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"prediction {self.prediction!r} does not give x_0 at level {self.stages[k].level} of the sampler, "
                "where there is no signal or no noise; v and x0 do"
            )

    def make_stages(self, grid: Grid) -> list[Stage]:
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """The steps from level to level; a step may take more than one network call."""
        return len(self.grid.ratio) - 1

    def add_level(self, ratio: Tensor) -> int:
        """A level between those of the grid; returns its number."""
        alpha = {
            "vp": 1 / (1 + ratio**2) ** 0.5,
            "ve": torch.ones_like(ratio),
            "flow": 1 / (1 + ratio),
        }
        self.alphas.append(alpha[self.grid.path])
        self.sigmas.append(ratio * self.alphas[-1])
        self.times.append(self.schedule.at_ratio(ratio))
        return len(self.alphas) - 1

    def noise_pair(self, level: int) -> tuple[Tensor, Tensor]:
        """The noise as factors of the state and of the prediction."""
        return PREDICTIONS[self.prediction].noise(self.alphas[level], self.sigmas[level])

    def _row(self, stage: Stage) -> Tensor:
        pair = PREDICTIONS[self.prediction].x0(self.alphas[stage.level], self.sigmas[stage.level])
        row = {"x0_state": pair.state, "x0_prediction": pair.prediction, **stage.row}
        dtype = self.grid.ratio.dtype
        return torch.stack(
            [torch.as_tensor(row.get(name, 0.0), dtype=dtype) for name in COEFFICIENTS]
        )

    def tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, network times and input scales for every stage, where x lies; made once."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        key = (x.device, dtype)
        if key not in self._tables:
            times = torch.stack([self.times[stage.level] for stage in self.stages])
            scales = torch.ones_like(self.table[:, 0])
            if self.prediction == "edm":
                sigmas = torch.stack([self.sigmas[stage.level] for stage in self.stages])
                times, scales = edm_time(sigmas), edm_input_scale(sigmas)
            if times.is_floating_point():
                times = times.to(dtype)
            moved = (self.table.to(dtype), times, scales.to(dtype))
            self._tables[key] = tuple(t.to(x.device) for t in moved)  # type: ignore[assignment]
        return self._tables[key]

    def step(
        self,
        k: int,
        x: Tensor,
        prediction: Tensor,
        kept: dict[str, Tensor],
        seed: int | Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The update of stage `k`; `kept` holds what stages hand on, and starts empty."""
        stage = self.stages[k]
        options |= {f"history{n + 1}": kept[name] for n, name in enumerate(stage.history)}
        if stage.noise:
            options |= {"stream": options.get("stream", 0) + k + 1, "add_noise": True}
        else:
            for name in ("stream", "sample_offset", "generator", "noise"):
                options.pop(name, None)
            seed = None
        y, x0 = denoise_step(
            x,
            prediction,
            self.tables(x)[0][k],
            seed,
            return_x0="x0" in stage.keep,
            **self.bounds,
            **options,
        )
        for what, name in stage.keep.items():
            kept[name] = x if what == "state" else x0  # type: ignore[assignment]
        return y

    def initial_noise(
        self, shape: Sequence[int], seed: int | Tensor | None = None, **options: Any
    ) -> Tensor:
        """The state that sampling starts from: noise of the first level's size."""
        noise = random_normal(shape, seed, **options)
        return noise * self.start_scale().to(noise)

    def start_scale(self) -> Tensor:
        """The standard deviation of the first state: sigma, which for a vp schedule is taken as 1."""
        return torch.ones_like(self.sigmas[0]) if self.grid.path == "vp" else self.sigmas[0]

    def sample(
        self,
        network: Network,
        x: Tensor,
        seed: int | Tensor | None = None,
        *,
        stream: int = 0,
        sample_offset: int = 0,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
        no_condition: Tensor | None = None,
        guidance: float | Tensor | None = None,
        learned_variance: bool = False,
        after: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Goes through all stages.

        Args:
            network: `network(x, time)` or `network(x, time, condition)` with time (N,) gives the
                prediction, (N, ...) like x; with a learned variance twice the channels.
            x: (N, ...) the first state, as `initial_noise` makes it.
            seed: of the noise that is added; the stage's number plus 1 and `stream` is its stream.
            stream: separates uses under one seed.
            sample_offset: the number of the first sample, so that parts of a batch give what the whole would.
            generator: the torch generator that a missing seed is drawn from.
            condition: (N, ...) for a conditional network.
            no_condition: (N, ...) what a conditional network takes for no condition.
            guidance: the guidance scale; the network then sees both halves of a doubled batch.
            learned_variance: whether the second half of the network's channels is a variance.
            after: called with the stage's number and the new state, and returns the state to go on
                with (inpainting, pictures).

        Returns:
            The last state: samples.

        Raises:
            ValueError: guidance without condition and no_condition, or a prediction of another shape.
        """
        if guidance is not None and (condition is None or no_condition is None):
            raise ValueError(
                "guidance must be None for an unconditional model; "
                "with one, condition and no_condition must be given"
            )
        if seed is None and any(stage.noise for stage in self.stages):
            seed = torch.randint(
                -(2**63), 2**63 - 1, (), generator=generator, dtype=torch.int64, device=x.device
            )
        place = {"stream": stream, "sample_offset": sample_offset}
        x = self.begin(x, seed, **place)
        kept: dict[str, Tensor] = {}
        for k in range(len(self.stages)):
            prediction, options = self.ask(network, k, x, condition, no_condition, guidance)
            if learned_variance:
                prediction, variance = prediction.chunk(2, dim=1)
                options["variance"] = variance
                if guidance is not None:
                    options["unconditional"] = options["unconditional"].chunk(2, dim=1)[0]
            x = self.step(k, x, prediction, kept, seed, **place, **options)
            x = x if after is None else after(k, x)
        return x

    def ask(
        self,
        network: Network,
        k: int,
        x: Tensor,
        condition: Tensor | None = None,
        no_condition: Tensor | None = None,
        guidance: float | Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The network's prediction at stage `k`, and with guidance the unconditional one."""
        _, times, scales = self.tables(x)
        time = times[k].expand(x.size(0))
        x = x * scales[k] if self.prediction == "edm" else x
        if guidance is None:
            return network(x, time) if condition is None else network(x, time, condition), {}
        assert condition is not None
        assert no_condition is not None
        both = network(torch.cat((x, x)), time.repeat(2), torch.cat((condition, no_condition)))
        prediction, unconditional = both.chunk(2)
        return prediction, {"unconditional": unconditional, "guidance": guidance}

    def begin(self, x: Tensor, seed: int | Tensor | None, **place: Any) -> Tensor:
        """What is done to the first state before the first stage."""
        return x


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
        if churn < 0:
            raise ValueError(f"churn must not be negative, got {churn}")
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
        one = torch.ones(x.size(0), device=x.device)
        place["stream"] += len(self.stages) + 1
        return diffuse(x, one, one * self.first_noise, seed, return_noise=False, **place)[0]
