"""Flow matching along Euler's method."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete as scheduling_flow
from torch import Tensor

from .common import ONE, as_row, kept, noise_like, noised, output, served, table_of, update


class FlowMatchEulerDiscreteScheduler(diffusers.FlowMatchEulerDiscreteScheduler):
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Any = None,
        per_token_timesteps: Any = None,
        return_dict: bool = True,
    ) -> Any:
        pair = None
        index = isinstance(timestep, int | torch.IntTensor | torch.LongTensor)
        usual = not index and per_token_timesteps is None
        if usual and served(self.sigmas, model_output, sample):
            if self.step_index is None:
                self._init_step_index(timestep)
            pair = kept(self, self.sigmas, self.step_index, self._pair)
        if pair is None:
            return super().step(
                model_output,
                timestep,
                sample,
                s_churn,
                s_tmin,
                s_tmax,
                s_noise,
                generator,
                per_token_timesteps,
                return_dict,
            )
        sigma, following, length = pair
        if self.config.stochastic_sampling:
            noise = noise_like(sample, generator)
            row = {"x0_state": ONE, "x0_prediction": -sigma, "x0": ONE - following}
            row["noise"] = following
            y, _ = update(sample, model_output, as_row(row), noise=noise, add_noise=True)
        else:
            y = torch.add(sample, model_output, alpha=length)
        self._step_index += 1
        if not return_dict:
            return (y,)
        return output(scheduling_flow.FlowMatchEulerDiscreteSchedulerOutput, prev_sample=y)

    def _pair(self) -> Any:
        """This step's sigma, the next one, and the way between them."""
        sigmas = table_of(self.sigmas)
        if sigmas is None:
            return None
        sigma, following = sigmas[self.step_index], sigmas[self.step_index + 1]
        return sigma, following, float(following - sigma)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Any = None) -> Tensor:
        x_t = noised(self, sample, noise, timestep, lambda sigma: (1.0 - sigma, sigma))
        return super().scale_noise(sample, timestep, noise) if x_t is None else x_t
