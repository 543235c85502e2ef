"""diffusers: `step` and `add_noise` of the DDPM, DDIM, Euler, DPM-Solver++ (multistep) and flow-matching schedulers.

Their coefficients are small tensors in float32. Here they are numpy's numbers in float32, in the same order of
operations, because 1 - alpha_t / alpha_{t-1} and its like have few digits, which the samples depend on. Noise comes
from the same generators. What the library keeps on a GPU is left to the library: reading it would wait.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm, scheduling_euler_discrete
from diffusers.schedulers import scheduling_flow_match_euler_discrete as scheduling_flow
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pyfastgan.ops import denoise_step, diffuse
from pyfastgan.ops.denoise_step import COEFFICIENTS

from .swap import Library, Swap, serves

_F = np.float32
_HALF, _ONE, _TWO = _F(0.5), _F(1), _F(2)


def _ready(*tensors: Any) -> bool:
    """Whether these are samples of one shape, in float32, that the ops take."""
    first = tensors[0]
    for t in tensors:
        if not isinstance(t, Tensor) or t.dtype != torch.float32 or t.shape != first.shape:
            return False
        if t.device != first.device:
            return False
    return first.dim() >= 2 and serves(first)


def _table(t: Any) -> Any:
    """A table as numpy's array; None if it is elsewhere or of another type."""
    known = isinstance(t, Tensor) and t.device.type == "cpu" and t.dtype == torch.float32
    return t.numpy() if known and not torch.compiler.is_compiling() else None


def _update(x: Tensor, prediction: Tensor, row: dict[str, Any], **options: Any) -> Any:
    numbers = [float(row.get(name, 0.0)) for name in COEFFICIENTS]
    coefficients = torch.tensor(numbers, dtype=torch.float32, device=x.device)
    return denoise_step(x, prediction, coefficients, return_x0=True, **options)


def _bounds(config: Any) -> dict[str, Any]:
    if config.thresholding:
        quantile, most = config.dynamic_thresholding_ratio, config.sample_max_value
        return {"clip": 1.0, "quantile": quantile, "quantile_limit": most}
    return {"clip": config.clip_sample_range} if config.get("clip_sample") else {}


def _x0_row(kind: str, alpha: Any, sigma: Any) -> dict[str, Any] | None:
    """x_0 of the state and the prediction; None for a kind of prediction that is not known."""
    if kind == "epsilon":
        return {"x0_state": _ONE / alpha, "x0_prediction": -sigma / alpha}
    if kind == "sample":
        return {"x0_prediction": _ONE}
    if kind == "v_prediction":
        return {"x0_state": alpha, "x0_prediction": -sigma}
    return None


def _add_noise(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    alpha, sigma = (t.flatten().expand(x.size(0)) for t in (alpha, sigma))
    return diffuse(x, alpha, sigma, noise=noise, return_noise=False)[0]


class _Cumulative:
    """`add_noise` of the schedulers that keep alpha-bar."""

    alphas_cumprod: Tensor

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        x = original_samples
        if not _ready(x, noise):
            return super().add_noise(x, noise, timesteps)  # type: ignore[misc]
        self.alphas_cumprod = self.alphas_cumprod.to(device=x.device)
        share = self.alphas_cumprod[timesteps.to(x.device)]
        return _add_noise(x, noise, share**0.5, (1 - share) ** 0.5)


class DDPMScheduler(_Cumulative, diffusers.DDPMScheduler):
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        table, config = _table(self.alphas_cumprod), self.config
        deviation = _DEVIATIONS.get(self.variance_type)
        if table is None or deviation is None or not _ready(model_output, sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        t, before = int(timestep), int(self.previous_timestep(timestep))
        share, share_before = table[t], table[before] if before >= 0 else _ONE
        rest, rest_before = _ONE - share, _ONE - share_before
        ratio = share / share_before
        beta = _ONE - ratio
        row = _x0_row(config.prediction_type, np.sqrt(share), np.sqrt(rest))
        if row is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        row["x0"] = np.sqrt(share_before) * beta / rest
        row["state"] = np.sqrt(ratio) * rest_before / rest
        options = _bounds(config)
        if t > 0:
            variance = np.maximum(rest_before / rest * beta, _F(1e-20))
            row["noise"] = deviation(variance, beta)
            options["add_noise"] = True
            options["noise"] = randn_tensor(
                model_output.shape,
                generator=generator,
                device=model_output.device,
                dtype=model_output.dtype,
            )
        y, x0 = _update(sample, model_output, row, **options)
        if not return_dict:
            return y, x0
        return scheduling_ddpm.DDPMSchedulerOutput(prev_sample=y, pred_original_sample=x0)


_DEVIATIONS = {
    "fixed_small": lambda variance, beta: np.sqrt(variance),
    "fixed_small_log": lambda variance, beta: np.exp(_HALF * np.log(variance)),
    "fixed_large": lambda variance, beta: np.sqrt(beta),
}


class DDIMScheduler(_Cumulative, diffusers.DDIMScheduler):
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
        table, config = _table(self.alphas_cumprod), self.config
        tensors = (model_output, sample, *([] if variance_noise is None else [variance_noise]))
        clash = variance_noise is not None and generator is not None
        row = None
        if self.num_inference_steps and table is not None and _ready(*tensors) and not clash:
            t = int(timestep)
            before = t - config.num_train_timesteps // self.num_inference_steps
            share = table[t]
            share_before = table[before] if before >= 0 else _F(self.final_alpha_cumprod)
            rest, rest_before = _ONE - share, _ONE - share_before
            alpha, sigma = np.sqrt(share), np.sqrt(rest)
            row = _x0_row(config.prediction_type, alpha, sigma)
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
        deviation = _F(eta) * np.sqrt(rest_before / rest * (_ONE - share / share_before))
        # The direction to x_t, along the predicted noise.
        along = np.sqrt(_ONE - share_before - deviation * deviation)
        row["x0"] = np.sqrt(share_before)
        if use_clipped_model_output:
            row["state"], row["x0"] = along / sigma, row["x0"] - along * alpha / sigma
        elif config.prediction_type == "epsilon":
            row["prediction"] = along
        elif config.prediction_type == "sample":
            row["state"], row["prediction"] = along / sigma, -along * alpha / sigma
        else:
            row["state"], row["prediction"] = along * sigma, along * alpha
        options = _bounds(config)
        if eta > 0:
            row["noise"] = deviation
            if variance_noise is None:
                variance_noise = randn_tensor(
                    model_output.shape,
                    generator=generator,
                    device=model_output.device,
                    dtype=model_output.dtype,
                )
            options |= {"add_noise": True, "noise": variance_noise}
        y, x0 = _update(sample, model_output, row, **options)
        if not return_dict:
            return y, x0
        return scheduling_ddim.DDIMSchedulerOutput(prev_sample=y, pred_original_sample=x0)


def _levels(scheduler: Any, timesteps: Tensor) -> Tensor | None:
    """The places of timesteps in the schedule, all at once; None where the library has a rule of its own for them."""
    if scheduler.begin_index is None:
        same = scheduler.timesteps[None] == timesteps[:, None]
        if not bool((same.sum(1) == 1).all()):
            return None
        return same.int().argmax(1)
    known = scheduler.begin_index if scheduler.step_index is None else scheduler.step_index
    return torch.full((len(timesteps),), known)


def _noised(scheduler: Any, x: Any, noise: Any, timesteps: Any, map: Any) -> Tensor | None:
    """x_t of the schedulers that keep sigmas; None if the library has to serve."""
    usual = _ready(x, noise) and isinstance(timesteps, Tensor) and timesteps.dim() == 1
    if not usual or any(t.device.type != "cpu" for t in (x, timesteps, scheduler.sigmas)):
        return None
    levels = _levels(scheduler, timesteps)
    if levels is None:
        return None
    return _add_noise(x, noise, *map(scheduler.sigmas.float()[levels]))


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
        sigmas, kind = _table(self.sigmas), self.config.prediction_type
        known = kind in ("epsilon", "v_prediction", "sample", "original_sample")
        index = isinstance(timestep, int | torch.IntTensor | torch.LongTensor)
        usual = known and not index and self.is_scale_input_called and not s_churn > 0
        if sigmas is None or not usual or not _ready(model_output, sample):
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
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, following = sigmas[self.step_index], sigmas[self.step_index + 1]
        if kind == "epsilon":
            row = {"x0_state": _ONE, "x0_prediction": -sigma}
        elif kind == "v_prediction":
            above = sigma * sigma + _ONE
            row = {"x0_state": _ONE / above, "x0_prediction": -sigma / np.sqrt(above)}
        else:
            row = {"x0_prediction": _ONE}
        row["state"], row["x0"] = following / sigma, (sigma - following) / sigma
        y, x0 = _update(sample, model_output, row)
        self._step_index += 1
        if not return_dict:
            return y, x0
        output = scheduling_euler_discrete.EulerDiscreteSchedulerOutput
        return output(prev_sample=y, pred_original_sample=x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        x_t = _noised(
            self, original_samples, noise, timesteps, lambda sigma: (torch.ones_like(sigma), sigma)
        )
        return super().add_noise(original_samples, noise, timesteps) if x_t is None else x_t


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
        sigmas = _table(self.sigmas)
        index = isinstance(timestep, int | torch.IntTensor | torch.LongTensor)
        usual = not index and per_token_timesteps is None
        if sigmas is None or not usual or not _ready(model_output, sample):
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
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, following = sigmas[self.step_index], sigmas[self.step_index + 1]
        if self.config.stochastic_sampling:
            noise = randn_tensor(
                sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
            )
            row = {"x0_state": _ONE, "x0_prediction": -sigma, "x0": _ONE - following}
            row["noise"] = following
            y, _ = _update(sample, model_output, row, noise=noise, add_noise=True)
        else:
            y = torch.add(sample, model_output, alpha=float(following - sigma))
        self._step_index += 1
        if not return_dict:
            return (y,)
        return scheduling_flow.FlowMatchEulerDiscreteSchedulerOutput(prev_sample=y)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Any = None) -> Tensor:
        x_t = _noised(self, sample, noise, timestep, lambda sigma: (1.0 - sigma, sigma))
        return super().scale_noise(sample, timestep, noise) if x_t is None else x_t


class DPMSolverMultistepScheduler(diffusers.DPMSolverMultistepScheduler):
    lower_order_nums: int

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        if self.config.use_flow_sigmas:
            return _ONE - sigma, sigma
        alpha = _ONE / np.sqrt(sigma * sigma + _ONE)
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
        shrink = np.exp(-_TWO * h) if sde else np.exp(-h)
        state = sigma / sigma_now * (np.exp(-h) if sde else _ONE)
        whole = alpha * (_ONE - shrink)
        weights = np.array([whole, 0, 0], dtype=np.float32)
        if order > 1:
            r0 = (logs[1] - logs[2]) / h
            slope = np.array([1, -1, 0], dtype=np.float32) / r0
            length = _TWO * h if sde else h
            if order == 2 and self.config.solver_type == "midpoint":
                weights = weights + _HALF * whole * slope
            else:
                line = alpha * ((shrink - _ONE) / length + _ONE)
                if order == 3:
                    r1 = (logs[2] - logs[3]) / h
                    earlier = np.array([0, 1, -1], dtype=np.float32) / r1
                    curve = (slope - earlier) / (r0 + r1)
                    bend = (shrink - _ONE + length) / (length * length) - _HALF
                    if sde:
                        bend = -((_ONE - shrink - length) / (length * length) - _HALF)
                    weights = weights - alpha * bend * curve
                    slope = slope + r0 * curve
                weights = weights + line * slope
        row = {"state": state, "x0": weights[0], "history1": weights[1], "history2": weights[2]}
        if sde:
            row["noise"] = sigma * np.sqrt(_ONE - shrink)
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
        config, sigmas = self.config, _table(self.sigmas)
        sde = config.algorithm_type == "sde-dpmsolver++"
        usual = (
            self.num_inference_steps is not None
            and sigmas is not None
            and (sde or config.algorithm_type == "dpmsolver++")
            and config.variance_type not in ("learned", "learned_range")
            and config.solver_type in ("midpoint", "heun")
            and _ready(model_output, sample, *[m for m in self.model_outputs if m is not None])
        )
        row = None
        if usual:
            if self.step_index is None:
                self._init_step_index(timestep)
            sigma = sigmas[self.step_index]
            if config.prediction_type == "flow_prediction":
                row = {"x0_state": _ONE, "x0_prediction": -sigma}
            else:
                row = _x0_row(config.prediction_type, *self._alpha_sigma(sigma))
        if row is None:
            return super().step(
                model_output, timestep, sample, generator, variance_noise, return_dict
            )
        order = self._order()
        row |= self._weights(sigmas, order)
        options = _bounds(config)
        if sde:
            noise = variance_noise
            if noise is None:
                noise = randn_tensor(
                    model_output.shape,
                    generator=generator,
                    device=model_output.device,
                    dtype=torch.float32,
                )
            noise = noise.to(device=model_output.device, dtype=torch.float32)
            options |= {"add_noise": True, "noise": noise}
        earlier = {f"history{k}": self.model_outputs[-k] for k in range(1, order)}
        y, x0 = _update(sample, model_output, row, **options, **earlier)
        self.model_outputs[:-1] = self.model_outputs[1:]
        self.model_outputs[-1] = x0
        self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
        self._step_index += 1
        return SchedulerOutput(prev_sample=y) if return_dict else (y,)

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
        x_t = _noised(
            self, original_samples, noise, timesteps, lambda s: self._sigma_to_alpha_sigma_t(s)
        )
        return super().add_noise(original_samples, noise, timesteps) if x_t is None else x_t


def _ddpm_reason(part: Any) -> str | None:
    known = part.variance_type in _DEVIATIONS
    return None if known else f"its variance is {part.variance_type!r}"


def _solver_reason(part: Any) -> str | None:
    kind = part.config.algorithm_type
    known = kind in ("dpmsolver++", "sde-dpmsolver++")
    return None if known else f"its algorithm is {kind!r}"


_OPS = "denoise_step, diffuse"

LIBRARY = Library(
    swaps={
        diffusers.DDPMScheduler: Swap(DDPMScheduler, _OPS, _ddpm_reason),
        diffusers.DDIMScheduler: Swap(DDIMScheduler, _OPS),
        diffusers.EulerDiscreteScheduler: Swap(EulerDiscreteScheduler, _OPS),
        diffusers.FlowMatchEulerDiscreteScheduler: Swap(FlowMatchEulerDiscreteScheduler, _OPS),
        diffusers.DPMSolverMultistepScheduler: Swap(
            DPMSolverMultistepScheduler, _OPS, _solver_reason
        ),
    },
    named=(SchedulerMixin,),
)
