"""What stands between a sampler and a network: labels, classifier-free guidance with rescale, and self-conditioning."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyfastgan.diffusion.prediction import PREDICTIONS
from pyfastgan.diffusion.sampler import Sampler

Network = Callable[..., Tensor]


def guide(
    conditional: Tensor, unconditional: Tensor, scale: float | Tensor, rescale: float = 0.0
) -> Tensor:
    """unconditional + scale (conditional - unconditional) (Ho & Salimans 2022); with `rescale` that share of it takes
    the standard deviation of the conditional prediction, a sample (Lin et al. 2024, equations 15 and 16).

    Args:
        conditional, unconditional: (N, ...) predictions.
        scale: A number, or (N,); 1 gives the conditional prediction.
        rescale: In [0, 1].

    Raises `ValueError` for a share outside of [0, 1].
    """
    check_rescale(rescale)
    if isinstance(scale, Tensor):
        scale = scale.reshape(-1, *[1] * (conditional.dim() - 1))
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    dims = tuple(range(1, guided.dim()))
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (rescale * ratio + 1 - rescale)


def check_rescale(rescale: float) -> None:
    """Raise unless this is a share."""
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1], got {rescale}")


def rescaled(network: Network, no_condition: Tensor, scale: float, rescale: float) -> Network:
    """A network `(x, time, condition)` that is guided and rescaled before a sampler sees its prediction. The rescaled
    combination is no linear one, so `denoise_step` does not do it."""

    def call(x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        both = network(torch.cat((x, x)), time.repeat(2), torch.cat((condition, no_condition)))
        yes, no = both.chunk(2)
        if yes.shape[1] == x.shape[1]:
            return guide(yes, no, scale, rescale)
        # The second half of the channels is a variance, which guidance leaves alone.
        (yes, variance), no = yes.chunk(2, 1), no.chunk(2, 1)[0]
        return torch.cat((guide(yes, no, scale, rescale), variance), 1)

    return call


def sample_labels(
    labels: Tensor | int | None,
    count: int,
    seed: int | Tensor,
    classes: int | None,
    guidance: float | None,
    device: torch.device,
) -> Tensor | None:
    """The labels (count,) of a model's samples, None of an unconditional one; refuses what
    `DiffusionModel.sample` says of labels and guidance."""
    if classes is None:
        for name, value in (("labels", labels), ("guidance", guidance)):
            if value is not None:
                raise ValueError(f"{name} must be None for an unconditional model, got {value}")
        return None
    if guidance is not None and not math.isfinite(guidance):
        raise ValueError(f"guidance must be finite, got {guidance}")
    if labels is None:
        number = seed if isinstance(seed, Tensor) else torch.arange(count, device=device)
        return number.to(device) % classes
    if isinstance(labels, int):
        labels = torch.full((count,), labels)
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(
            f"labels must be int64 ({count},), got {labels.dtype} {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    return labels.to(device)


class SelfConditioned:
    """A network with self-conditioning that is handed, at each call of a sampling loop, the x_0 of the call before.

    Args:
        network: `network(x, time, condition, x0=estimate)`.
        sampler: Whose stages are gone through, in order, once.
        clip: The bound on the estimate.
        repeats: How often each stage but the last is asked, one time after the other.
    """

    def __init__(
        self, network: Network, sampler: Sampler, clip: float | None, repeats: int = 1
    ) -> None:
        self.network, self.sampler, self.clip = network, sampler, clip
        self.repeats, self.calls = repeats, 0
        self.estimate: Tensor | None = None

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        found = self.network(x, time, condition, x0=self.estimate)
        prediction = found[:, : x.shape[1]]
        stage = self.calls // self.repeats
        level = self.sampler.stages[stage].level
        scale = self.sampler.tables(x)[2][stage]
        self.calls += 1
        alpha, sigma = self.sampler.alphas[level], self.sampler.sigmas[level]
        factors = PREDICTIONS[self.sampler.prediction].x0(alpha, sigma)
        estimate = factors.state.to(x) / scale * x + factors.prediction.to(x) * prediction
        self.estimate = estimate if self.clip is None else estimate.clamp(-self.clip, self.clip)
        return found
