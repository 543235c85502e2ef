"""DDPM: Ho et al. 2020."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from .common import (
    HALF,
    ONE,
    Cumulative,
    F,
    as_row,
    bounds,
    kept,
    noise_like,
    output,
    served,
    table_of,
    update,
    x0_row,
)


class DDPMScheduler(Cumulative, diffusers.DDPMScheduler):
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        table, config = self.alphas_cumprod, self.config
        known = self.variance_type in DEVIATIONS
        if not known or not served(table, model_output, sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        t, before = int(timestep), int(self.previous_timestep(timestep))
        key = (t, before, config.prediction_type, self.variance_type)
        row = kept(self, table, key, lambda: self._row(table_of(table), t, before))
        if row is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        options = bounds(config)
        if t > 0:
            options["add_noise"] = True
            options["noise"] = noise_like(model_output, generator)
        y, x0 = update(sample, model_output, row, **options)
        if not return_dict:
            return y, x0
        return output(scheduling_ddpm.DDPMSchedulerOutput, prev_sample=y, pred_original_sample=x0)

    def _row(self, table: Any, t: int, before: int) -> Any:
        if table is None:
            return None
        share, share_before = table[t], table[before] if before >= 0 else ONE
        rest, rest_before = ONE - share, ONE - share_before
        ratio = share / share_before
        beta = ONE - ratio
        row = x0_row(self.config.prediction_type, np.sqrt(share), np.sqrt(rest))
        if row is None:
            return None
        row["x0"] = np.sqrt(share_before) * beta / rest
        row["state"] = np.sqrt(ratio) * rest_before / rest
        if t > 0:
            variance = np.maximum(rest_before / rest * beta, F(1e-20))
            row["noise"] = DEVIATIONS[self.variance_type](variance, beta)
        return as_row(row)


DEVIATIONS = {
    "fixed_small": lambda variance, beta: np.sqrt(variance),
    "fixed_small_log": lambda variance, beta: np.exp(HALF * np.log(variance)),
    "fixed_large": lambda variance, beta: np.sqrt(beta),
}
