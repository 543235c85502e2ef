"""What the schedulers share: tables in float32, the update, the noise of training.

Their coefficients are small tensors in float32. Here they are numpy's numbers in float32, in the same order of
operations, because 1 - alpha_t / alpha_{t-1} and its like have few digits, which the samples depend on. Noise comes
from the same generators. What the library keeps on a GPU is left to the library: reading it would wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pyfastgan.ops import denoise_step, diffuse
from pyfastgan.ops.denoise_step import COEFFICIENTS

from ..swap import serves

F = np.float32
HALF, ONE, TWO = F(0.5), F(1), F(2)


def ready(*tensors: Any) -> bool:
    """Whether these are samples of one shape, in float32, that the ops take."""
    first = tensors[0]
    for t in tensors:
        if not isinstance(t, Tensor) or t.dtype != torch.float32 or t.shape != first.shape:
            return False
        if t.device != first.device:
            return False
    return first.dim() >= 2 and serves(first)


def table_of(t: Any) -> Any:
    """A table as numpy's array; None if it is elsewhere or of another type."""
    known = isinstance(t, Tensor) and t.device.type == "cpu" and t.dtype == torch.float32
    return t.numpy() if known and not torch.compiler.is_compiling() else None


# For each scheduler and key: a table, its version, and what was made of it.
_made: Any = WeakKeyDictionary()


def kept(scheduler: Any, table: Tensor, key: Any, make: Callable[[], Any]) -> Any:
    """`make()` for this table and this key, made once as long as the table stays as it is: numbers cost more than a
    small step does. The key has to name whatever else they depend on."""
    if table.is_inference():
        return make()  # it does not tell whether it was changed
    made = _made.get(scheduler)
    if made is None:
        made = _made[scheduler] = {}
    found = made.get(key)
    if found is None or found[0] is not table or found[1] != table._version:
        found = made[key] = (table, table._version, make())
    return found[2]


def as_row(row: dict[str, Any]) -> Tensor:
    """The coefficients of `denoise_step`."""
    numbers = [row.get(name, 0.0) for name in COEFFICIENTS]
    return torch.from_numpy(np.array(numbers, dtype=np.float32))


def update(x: Tensor, prediction: Tensor, row: Tensor, **options: Any) -> Any:
    if not x.is_cpu:
        row = row.to(x.device)
    return denoise_step(x, prediction, row, return_x0=True, **options)


def bounds(config: Any) -> dict[str, Any]:
    if config.thresholding:
        quantile, most = config.dynamic_thresholding_ratio, config.sample_max_value
        return {"clip": 1.0, "quantile": quantile, "quantile_limit": most}
    return {"clip": config.clip_sample_range} if config.get("clip_sample") else {}


def x0_row(kind: str, alpha: Any, sigma: Any) -> dict[str, Any] | None:
    """x_0 of the state and the prediction; None for a kind of prediction that is not known."""
    if kind == "epsilon":
        return {"x0_state": ONE / alpha, "x0_prediction": -sigma / alpha}
    if kind == "sample":
        return {"x0_prediction": ONE}
    if kind == "v_prediction":
        return {"x0_state": alpha, "x0_prediction": -sigma}
    return None


def noise_like(x: Tensor, generator: Any) -> Tensor:
    return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def mixed(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    if alpha.shape[0] != x.shape[0]:
        alpha, sigma = alpha.expand(x.size(0)), sigma.expand(x.size(0))
    return diffuse(x, alpha, sigma, noise=noise, return_noise=False)[0]


class Cumulative:
    """`add_noise` of the schedulers that keep alpha-bar."""

    alphas_cumprod: Tensor

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        x = original_samples
        if not ready(x, noise):
            return super().add_noise(x, noise, timesteps)  # type: ignore[misc]
        table, places = table_of(self.alphas_cumprod), _numbers(timesteps)
        if x.device.type == "cpu" and table is not None and places is not None:
            shares = table[places.reshape(-1)]
            alpha, sigma = np.sqrt(shares), np.sqrt(ONE - shares)
            return mixed(x, noise, torch.from_numpy(alpha), torch.from_numpy(sigma))
        self.alphas_cumprod = self.alphas_cumprod.to(device=x.device)
        share = self.alphas_cumprod[timesteps.to(x.device)]
        return mixed(x, noise, (share**0.5).flatten(), ((1 - share) ** 0.5).flatten())


def _numbers(t: Any) -> Any:
    """Timesteps as numpy's array; None where that would wait, round or be traced."""
    usual = isinstance(t, Tensor) and t.device.type == "cpu" and not torch.compiler.is_compiling()
    return t.detach().numpy() if usual and t.dtype in (torch.int64, torch.float32) else None


def _rising(falling: Any) -> Any:
    """A schedule that falls, backwards; False if it does not fall."""
    return falling[::-1].copy() if (falling[1:] < falling[:-1]).all() else False


def _places(rising: Any, wanted: Any) -> Any:
    """Where timesteps stand in a schedule; None if one of them stands nowhere."""
    behind = np.searchsorted(rising, wanted)
    if not len(wanted) or behind.max() >= len(rising) or (rising[behind] != wanted).any():
        return None
    return len(rising) - 1 - behind


def levels_of(scheduler: Any, timesteps: Tensor) -> Any:
    """The places of timesteps in the schedule, all at once; None where the library has a rule of its own for them."""
    if scheduler.begin_index is None:
        table, wanted = _numbers(scheduler.timesteps), _numbers(timesteps)
        if table is not None and wanted is not None and table.dtype == wanted.dtype:
            rising = kept(scheduler, scheduler.timesteps, "rising", lambda: _rising(table))
            places = None if rising is False else _places(rising, wanted)
            if places is not None:
                return places
        same = scheduler.timesteps[None] == timesteps[:, None]
        if not bool((same.sum(1) == 1).all()):
            return None
        return same.int().argmax(1)
    known = scheduler.begin_index if scheduler.step_index is None else scheduler.step_index
    return torch.full((len(timesteps),), known)


def noised(
    scheduler: Any, x: Any, noise: Any, timesteps: Any, map: Any, kind: Any = None
) -> Tensor | None:
    """x_t of the schedulers that keep sigmas; None if the library has to serve. `map` gives alpha and sigma of a
    sigma; `kind` names what it depends on."""
    usual = ready(x, noise) and isinstance(timesteps, Tensor) and timesteps.dim() == 1
    if not usual or any(t.device.type != "cpu" for t in (x, timesteps, scheduler.sigmas)):
        return None
    levels = levels_of(scheduler, timesteps)
    if levels is None:
        return None
    if isinstance(levels, Tensor):
        return mixed(x, noise, *map(scheduler.sigmas.float()[levels]))
    alphas, sigmas = kept(
        scheduler,
        scheduler.sigmas,
        ("mixed", kind),
        lambda: [t.numpy() for t in map(scheduler.sigmas.float())],
    )
    return mixed(x, noise, torch.from_numpy(alphas[levels]), torch.from_numpy(sigmas[levels]))
