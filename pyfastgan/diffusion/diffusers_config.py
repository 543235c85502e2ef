"""What a configuration of a scheduler of diffusers says of its noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice, nearest
from pyfastgan.training.config import check_number


def diffusers_tables(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The path, alpha^2, sigma^2, on the flow path the times too, and the prediction.

    Raises:
        TypeError, ValueError: as `NoiseSchedule.from_diffusers` says.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, got {type(config).__name__}")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in config.items():
        if key not in _KEYS:
            raise ValueError(f"config has the unknown key {key!r}{nearest(key, _KEYS)}")
        refused = _REFUSED.get(key)
        if refused is not None and value not in refused:
            raise ValueError(f"config: {key}={value!r} is not supported, only {refused}")
    steps = config.get("num_train_timesteps", 1000)
    check_number("config: num_train_timesteps", steps, int, at_least=1)
    for key in ("beta_start", "beta_end", "shift"):
        if key in config:
            check_number(f"config: {key}", config[key], float, at_least=0)
    if "shift" in config:
        t = torch.linspace(1, steps, steps, dtype=torch.float32) / steps
        shift = config["shift"]
        t = shift * t / (1 + (shift - 1) * t)
        return "flow", (1 - t) ** 2, t**2, t * steps, "flow"
    betas = _betas(config, steps)
    if config.get("rescale_betas_zero_snr"):
        root = torch.cumprod(1.0 - betas, 0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        squares = ((root - last) * (first / (first - last))) ** 2
        betas = 1 - torch.cat((squares[:1], squares[1:] / squares[:-1]))
    alpha_squared = torch.cumprod(1.0 - betas, 0)
    # Schedulers that work on sigma, which clip nothing, keep the last level finite (where it stays the last).
    finite = "timestep_spacing" in config and "clip_sample" not in config
    if config.get("rescale_betas_zero_snr") and finite and bool(alpha_squared[-2:][0] > 2**-24):
        alpha_squared[-1] = 2**-24
    name = config.get("prediction_type", "epsilon")
    known = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    if name not in known:
        raise ValueError(f"config: prediction_type must be one of {', '.join(known)}, got {name!r}")
    return "vp", alpha_squared, 1 - alpha_squared, known[name]


def _betas(config: Mapping[str, Any], steps: int) -> Tensor:
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
_REFUSED: dict[str, tuple[Any, ...]] = {
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
_KEYS = frozenset(
    (
        *_REFUSED,
        *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
        *("prediction_type", "rescale_betas_zero_snr", "shift", "variance_type", "clip_sample"),
        *("clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
        *("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type"),
        *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final"),
        *("lambda_min_clipped", "predict_x0", "disable_corrector", "flow_shift"),
        *("time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    )
)
