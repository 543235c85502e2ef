"""What the schedulers share: tables in float32, the update, the noise of training.

Their coefficients are small tensors in float32. Here they are numpy's numbers in float32, in the same order of
operations, because 1 - alpha_t / alpha_{t-1} and its like have few digits, which the samples depend on. Noise comes
from the same generators. What the library keeps on a GPU is left to the library: reading it would wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.compiler import is_compiling

from pyfastgan.ops import denoise_step, diffuse
from pyfastgan.ops.denoise_step import COEFFICIENTS

F = np.float32
HALF, ONE, TWO = F(0.5), F(1), F(2)


def ready(first: Any, *others: Any) -> bool:
    """Whether these are samples of one shape, in float32 outside autocast, that the ops take."""
    if not isinstance(first, Tensor) or first.dtype is not torch.float32 or first.is_meta:
        return False
    shape, device = first.shape, first.device
    for t in others:
        if not isinstance(t, Tensor) or t.dtype is not torch.float32 or t.shape != shape:
            return False
        if t.device != device:
            return False
    return len(shape) >= 2 and not torch.is_autocast_enabled(device.type)


def served(table: Any, *tensors: Any) -> bool:
    """Whether these are samples as above and the table is a tensor, outside tracing."""
    return not is_compiling() and isinstance(table, Tensor) and ready(*tensors)


def table_of(t: Any) -> Any:
    """A table as numpy's array; None if it is elsewhere or of another type."""
    return t.numpy() if t.is_cpu and t.dtype is torch.float32 else None


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
    """x_0 of the state and the prediction; None for a kind of prediction that is not known, or where there is no signal
    to divide by: the library's own infinities have the signs of a sum that is divided at once."""
    if kind == "epsilon":
        if alpha == 0:
            return None
        return {"x0_state": ONE / alpha, "x0_prediction": -sigma / alpha}
    if kind == "sample":
        return {"x0_prediction": ONE}
    if kind == "v_prediction":
        return {"x0_state": alpha, "x0_prediction": -sigma}
    return None


def output(kind: Any, **fields: Any) -> Any:
    """An output of the library's with all its fields, none of them None. Its own constructor looks at each field three
    times, which takes as long as a small step."""
    made = OrderedDict.__new__(kind)
    vars(made).update(fields)
    for name, value in fields.items():
        OrderedDict.__setitem__(made, name, value)
    return made


def noise_like(x: Tensor, generator: Any) -> Tensor:
    return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def mixed(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    if alpha.size(0) != x.size(0):
        alpha, sigma = alpha.expand(x.size(0)), sigma.expand(x.size(0))
    return diffuse(x, alpha, sigma, noise=noise, return_noise=False)[0]


class Cumulative:
    """`add_noise` of the schedulers that keep alpha-bar."""

    alphas_cumprod: Tensor

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        x = original_samples
        if not ready(x, noise):
            return super().add_noise(x, noise, timesteps)  # type: ignore[misc]
        places = _numbers(timesteps) if x.is_cpu else None
        if places is not None:
            factors = kept(self, self.alphas_cumprod, "mixed", self._factors)
            if factors is not None:
                places = places.reshape(-1)
                alpha, sigma = [torch.from_numpy(t[places]) for t in factors]
                return mixed(x, noise, alpha, sigma)
        self.alphas_cumprod = self.alphas_cumprod.to(device=x.device)
        share = self.alphas_cumprod[timesteps.to(x.device)]
        return mixed(x, noise, (share**0.5).flatten(), ((1 - share) ** 0.5).flatten())

    def _factors(self) -> Any:
        table = table_of(self.alphas_cumprod)
        return None if table is None else (np.sqrt(table), np.sqrt(ONE - table))


def _numbers(t: Any) -> Any:
    """Timesteps as numpy's array; None where that would wait, round or be traced."""
    usual = isinstance(t, Tensor) and t.is_cpu and not is_compiling()
    if not usual or not (t.dtype is torch.int64 or t.dtype is torch.float32):
        return None
    return (t.detach() if t.requires_grad else t).numpy()


def _places(falling: Tensor) -> dict[float, int] | None:
    """Where each timestep of a schedule that falls stands in it; None if it does not fall."""
    if not bool((falling[1:] < falling[:-1]).all()):
        return None
    return {t: place for place, t in enumerate(falling.tolist())}


def levels_of(scheduler: Any, timesteps: Tensor) -> Any:
    """The places of timesteps in the schedule, all at once; None where the library has a rule of its own for them."""
    if scheduler.begin_index is None:
        table = scheduler.timesteps
        if (
            timesteps.dtype is table.dtype
            and table.is_cpu
            and timesteps.is_cpu
            and not is_compiling()
        ):
            places = kept(scheduler, table, "places", lambda: _places(table))
            try:
                if places is not None and len(timesteps):
                    return np.array([places[t] for t in timesteps.tolist()])
            except KeyError:
                pass
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
    usual = isinstance(timesteps, Tensor) and timesteps.dim() == 1 and ready(x, noise)
    if not usual or not (x.is_cpu and timesteps.is_cpu and scheduler.sigmas.is_cpu):
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
