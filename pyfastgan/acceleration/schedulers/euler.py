"""Euler's method: Karras et al. 2022."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_euler_discrete
from torch import Tensor

from .common import ONE, as_row, kept, noised, output, served, table_of, update


class EulerDiscreteScheduler(diffusers.EulerDiscreteScheduler):
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
        return_dict: bool = True,
    ) -> Any:
        kind, row = self.config.prediction_type, None
        known = kind in ("epsilon", "v_prediction", "sample", "original_sample")
        index = isinstance(timestep, int | torch.IntTensor | torch.LongTensor)
        usual = known and not index and self.is_scale_input_called and not s_churn > 0
        if usual and served(self.sigmas, model_output, sample):
            if self.step_index is None:
                self._init_step_index(timestep)
            place = self.step_index
            row = kept(self, self.sigmas, (place, kind), lambda: self._row(kind, place))
        if row is None:
            return super().step(
                model_output,
                timestep,
                sample,
                s_churn,
                s_tmin,
                s_tmax,
                s_noise,
                generator,
                return_dict,
            )
        y, x0 = update(sample, model_output, row)
        self._step_index += 1
        if not return_dict:
            return y, x0
        kind_of_output = scheduling_euler_discrete.EulerDiscreteSchedulerOutput
        return output(kind_of_output, prev_sample=y, pred_original_sample=x0)

    def _row(self, kind: str, place: int) -> Tensor | None:
        sigmas = table_of(self.sigmas)
        return None if sigmas is None else _row(kind, *sigmas[place : place + 2])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        x_t = noised(
            self, original_samples, noise, timesteps, lambda sigma: (torch.ones_like(sigma), sigma)
        )
        return super().add_noise(original_samples, noise, timesteps) if x_t is None else x_t


def _row(kind: str, sigma: Any, following: Any) -> Tensor:
    if kind == "epsilon":
        row = {"x0_state": ONE, "x0_prediction": -sigma}
    elif kind == "v_prediction":
        above = sigma * sigma + ONE
        row = {"x0_state": ONE / above, "x0_prediction": -sigma / np.sqrt(above)}
    else:
        row = {"x0_prediction": ONE}
    row["state"], row["x0"] = following / sigma, (sigma - following) / sigma
    return as_row(row)
