"""DDPM: Ho et al. 2020."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from .common import HALF, ONE, Cumulative, F, bounds, noise_like, ready, table_of, update, x0_row


class DDPMScheduler(Cumulative, diffusers.DDPMScheduler):
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        table, config = table_of(self.alphas_cumprod), self.config
        deviation = DEVIATIONS.get(self.variance_type)
        if table is None or deviation is None or not ready(model_output, sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        t, before = int(timestep), int(self.previous_timestep(timestep))
        share, share_before = table[t], table[before] if before >= 0 else ONE
        rest, rest_before = ONE - share, ONE - share_before
        ratio = share / share_before
        beta = ONE - ratio
        row = x0_row(config.prediction_type, np.sqrt(share), np.sqrt(rest))
        if row is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        row["x0"] = np.sqrt(share_before) * beta / rest
        row["state"] = np.sqrt(ratio) * rest_before / rest
        options = bounds(config)
        if t > 0:
            variance = np.maximum(rest_before / rest * beta, F(1e-20))
            row["noise"] = deviation(variance, beta)
            options["add_noise"] = True
            options["noise"] = noise_like(model_output, generator)
        y, x0 = update(sample, model_output, row, **options)
        if not return_dict:
            return y, x0
        return scheduling_ddpm.DDPMSchedulerOutput(prev_sample=y, pred_original_sample=x0)


DEVIATIONS = {
    "fixed_small": lambda variance, beta: np.sqrt(variance),
    "fixed_small_log": lambda variance, beta: np.exp(HALF * np.log(variance)),
    "fixed_large": lambda variance, beta: np.sqrt(beta),
}
