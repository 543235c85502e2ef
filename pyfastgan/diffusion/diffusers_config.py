"""What a configuration of a scheduler of diffusers says of its noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice


def diffusers_betas(config: Mapping[str, Any], steps: int) -> Tensor:
    """The betas, in float32 as the library has them."""
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    name = config.get("beta_schedule", "linear")
    check_choice("beta_schedule", name, ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if name == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, steps)) * (end - start) + start
    curve = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
    betas = [min(1 - later / now, 0.999) for now, later in itertools.pairwise(curve)]
    return torch.tensor(betas, dtype=torch.float32)


# What configurations of its schedulers hold; a sampler's part is the sampler's to be told.
DIFFUSERS_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
    "shift_terminal": (None,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "solver_p": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
}
DIFFUSERS_KEYS = frozenset(
    (
        *DIFFUSERS_REFUSED,
        *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
        *("prediction_type", "rescale_betas_zero_snr", "shift", "variance_type", "clip_sample"),
        *("clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
        *("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type"),
        *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final"),
        *("lambda_min_clipped", "predict_x0", "disable_corrector", "flow_shift"),
        *("time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    )
)
