"""DPM-Solver++ with several steps: Lu et al. 2022."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from .common import (
    HALF,
    ONE,
    TWO,
    as_row,
    bounds,
    kept,
    noise_like,
    noised,
    output,
    served,
    table_of,
    update,
    x0_row,
)


class DPMSolverMultistepScheduler(diffusers.DPMSolverMultistepScheduler):
    lower_order_nums: int

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        if self.config.use_flow_sigmas:
            return ONE - sigma, sigma
        alpha = ONE / np.sqrt(sigma * sigma + ONE)
        return alpha, sigma * alpha

    def _weights(self, sigmas: Any, order: int) -> dict[str, Any]:
        """The row of an update, but for x_0: formulas of Lu et al. 2022 as the library has them."""
        sde = self.config.algorithm_type == "sde-dpmsolver++"
        place = self.step_index
        pairs = [self._alpha_sigma(sigmas[place + 1 - k]) for k in range(order + 1)]
        with np.errstate(divide="ignore"):
            logs = [np.log(alpha) - np.log(sigma) for alpha, sigma in pairs]
        (alpha, sigma), (_, sigma_now) = pairs[:2]
        h = logs[0] - logs[1]
        shrink = np.exp(-TWO * h) if sde else np.exp(-h)
        state = sigma / sigma_now * (np.exp(-h) if sde else ONE)
        whole = alpha * (ONE - shrink)
        weights = np.array([whole, 0, 0], dtype=np.float32)
        if order > 1:
            r0 = (logs[1] - logs[2]) / h
            slope = np.array([1, -1, 0], dtype=np.float32) / r0
            length = TWO * h if sde else h
            if order == 2 and self.config.solver_type == "midpoint":
                weights = weights + HALF * whole * slope
            else:
                line = alpha * ((shrink - ONE) / length + ONE)
                if order == 3:
                    r1 = (logs[2] - logs[3]) / h
                    earlier = np.array([0, 1, -1], dtype=np.float32) / r1
                    curve = (slope - earlier) / (r0 + r1)
                    bend = (shrink - ONE + length) / (length * length) - HALF
                    if sde:
                        bend = -((ONE - shrink - length) / (length * length) - HALF)
                    weights = weights - alpha * bend * curve
                    slope = slope + r0 * curve
                weights = weights + line * slope
        row = {"state": state, "x0": weights[0], "history1": weights[1], "history2": weights[2]}
        if sde:
            row["noise"] = sigma * np.sqrt(ONE - shrink)
        return row

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        variance_noise: Any = None,
        return_dict: bool = True,
    ) -> Any:
        config = self.config
        sde = config.algorithm_type == "sde-dpmsolver++"
        usual = (
            self.num_inference_steps is not None
            and (sde or config.algorithm_type == "dpmsolver++")
            and config.variance_type not in ("learned", "learned_range")
            and config.solver_type in ("midpoint", "heun")
            and served(
                self.sigmas, model_output, sample, *[m for m in self.model_outputs if m is not None]
            )
        )
        row = None
        if usual:
            if self.step_index is None:
                self._init_step_index(timestep)
            order, place = self._order(), self.step_index
            settings = (config.prediction_type, config.algorithm_type, config.solver_type)
            key = (place, order, config.use_flow_sigmas, *settings)
            row = kept(self, self.sigmas, key, lambda: self._row(order))
        if row is None:
            return super().step(
                model_output, timestep, sample, generator, variance_noise, return_dict
            )
        options = bounds(config)
        if sde:
            noise = variance_noise
            if noise is None:
                noise = noise_like(model_output, generator)
            noise = noise.to(device=model_output.device, dtype=torch.float32)
            options |= {"add_noise": True, "noise": noise}
        earlier = {f"history{k}": self.model_outputs[-k] for k in range(1, order)}
        y, x0 = update(sample, model_output, row, **options, **earlier)
        self.model_outputs[:-1] = self.model_outputs[1:]
        self.model_outputs[-1] = x0
        self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
        self._step_index += 1
        return output(SchedulerOutput, prev_sample=y) if return_dict else (y,)

    def _row(self, order: int) -> Tensor | None:
        sigmas = table_of(self.sigmas)
        if sigmas is None:
            return None
        sigma, kind = sigmas[self.step_index], self.config.prediction_type
        if kind == "flow_prediction":
            row: Any = {"x0_state": ONE, "x0_prediction": -sigma}
        else:
            row = x0_row(kind, *self._alpha_sigma(sigma))
        return None if row is None else as_row(row | self._weights(sigmas, order))

    def _order(self) -> int:
        """Of this step: fewer at the beginning, and at the end of a short way."""
        config, left = self.config, len(self.timesteps) - 1 - self.step_index
        short = config.lower_order_final and len(self.timesteps) < 15
        last = config.euler_at_final or short or config.final_sigmas_type == "zero"
        if config.solver_order == 1 or self.lower_order_nums < 1 or (left == 0 and last):
            return 1
        if config.solver_order == 2 or self.lower_order_nums < 2 or (left == 1 and short):
            return 2
        return 3

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        x_t = noised(
            self,
            original_samples,
            noise,
            timesteps,
            lambda s: self._sigma_to_alpha_sigma_t(s),
            self.config.use_flow_sigmas,
        )
        return super().add_noise(original_samples, noise, timesteps) if x_t is None else x_t
