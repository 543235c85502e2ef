"""DDIM: Song et al. 2021."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers import scheduling_ddim
from torch import Tensor

from .common import (
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


class DDIMScheduler(Cumulative, diffusers.DDIMScheduler):
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Any = None,
        return_dict: bool = True,
    ) -> Any:
        table, config = self.alphas_cumprod, self.config
        tensors = (model_output, sample, *([] if variance_noise is None else [variance_noise]))
        clash = variance_noise is not None and generator is not None
        row = None
        if self.num_inference_steps and not clash and served(table, *tensors):
            t, kind = int(timestep), config.prediction_type
            settings = (self.num_inference_steps, float(self.final_alpha_cumprod), eta)
            key = (t, kind, use_clipped_model_output, *settings)
            row = kept(
                self,
                table,
                key,
                lambda: self._row(table_of(table), t, eta, use_clipped_model_output),
            )
        if row is None:
            return super().step(
                model_output,
                timestep,
                sample,
                eta,
                use_clipped_model_output,
                generator,
                variance_noise,
                return_dict,
            )
        options = bounds(config)
        if eta > 0:
            if variance_noise is None:
                variance_noise = noise_like(model_output, generator)
            options |= {"add_noise": True, "noise": variance_noise}
        y, x0 = update(sample, model_output, row, **options)
        if not return_dict:
            return y, x0
        return output(scheduling_ddim.DDIMSchedulerOutput, prev_sample=y, pred_original_sample=x0)

    def _row(self, table: Any, t: int, eta: float, use_clipped_model_output: bool) -> Any:
        if table is None:
            return None
        kind = self.config.prediction_type
        before = t - self.config.num_train_timesteps // self.num_inference_steps
        share = table[t]
        share_before = table[before] if before >= 0 else F(self.final_alpha_cumprod)
        rest, rest_before = ONE - share, ONE - share_before
        alpha, sigma = np.sqrt(share), np.sqrt(rest)
        row = x0_row(kind, alpha, sigma)
        if row is None:
            return None
        deviation = F(eta) * np.sqrt(rest_before / rest * (ONE - share / share_before))
        # The direction to x_t, along the predicted noise.
        along = np.sqrt(ONE - share_before - deviation * deviation)
        row["x0"] = np.sqrt(share_before)
        if use_clipped_model_output:
            row["state"], row["x0"] = along / sigma, row["x0"] - along * alpha / sigma
        elif kind == "epsilon":
            row["prediction"] = along
        elif kind == "sample":
            row["state"], row["prediction"] = along / sigma, -along * alpha / sigma
        else:
            row["state"], row["prediction"] = along * sigma, along * alpha
        if eta > 0:
            row["noise"] = deviation
        return as_row(row)
