"""What a sampler is: a list of stages, a row of coefficients for `pyfastgan.ops.denoise_step` at each network call.

A stage tells the network a time, takes its prediction, and replaces the state by a linear combination
of the state, the predicted x_0, the prediction, what earlier stages kept, and noise. All rows are
made beforehand, so that a step decides nothing and waits for nothing: a whole loop compiles, and
fits a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.diffusion.grid import Grid
from pyfastgan.diffusion.prediction import PREDICTIONS, edm_input_scale, edm_time
from pyfastgan.diffusion.schedule import NoiseSchedule
from pyfastgan.ops import denoise_step, random_normal
from pyfastgan.ops.denoise_step import COEFFICIENTS, check_bounds
from pyfastgan.ops.diffuse import check_batch

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
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"schedule must be a NoiseSchedule, got {type(schedule).__name__}")
        check_bounds(clip, quantile, quantile_limit)
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
            if self.table[k, :2].isfinite().all():
                raise ValueError(
                    f"timesteps must begin where there is a signal, and end before the noise does, for "
                    f"{type(self).__name__} with prediction {self.prediction!r}: the update of stage {k} is not finite"
                )
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
        if "log_min" in stage.row and options.get("variance") is None:
            raise ValueError("learned_variance must be true for a sampler of a learned variance")
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
        check_batch("x", x)
        for name, given in (("condition", condition), ("no_condition", no_condition)):
            if given is not None and len(given) != len(x):
                raise ValueError(f"{name} must have {len(x)} samples like x, got {len(given)}")
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
