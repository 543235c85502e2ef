"""Inpainting: a sampler goes on from what is known, in places that a mask names.

At every level the known places are replaced by the known image with that level's noise (Song et al. 2021). With
`repeats` every step is done so many times, the state being noised back in between, so that the rest gets to fit
what is known (RePaint, Lugmayr et al. 2022, with jumps of one step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfastgan.diffusion.sampler import Sampler
from pyfastgan.diffusion.samplers import DDIM, DDPM, Euler
from pyfastgan.ops import diffuse
from pyfastgan.ops._common import accumulation

# Streams of the noise: that of the known places, and, behind those of a sampler's stages, that of repeated steps.
_KNOWN, _REPEATS = 2**30, 2**20


def check_mask(mask: Tensor, known: Tensor) -> Tensor:
    """The mask as bool (N, 1 or C, ...), after checking that it belongs to images `known` (N, C, ...).

    Raises:
        ValueError: a mask of another shape; the message says which one is expected.
        TypeError: known that is not floating point, or a mask that is not bool.
    """
    for name, given in (("known", known), ("mask", mask)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
    if not known.is_floating_point() or mask.dtype != torch.bool:
        raise TypeError(
            f"known must be floating point and mask bool, got {known.dtype}, {mask.dtype}"
        )
    n, c, *rest = known.shape
    allowed = [(n, c, *rest), (n, 1, *rest), (1, c, *rest), (1, 1, *rest)]
    if mask.dim() == known.dim() - 1 and tuple(mask.shape) in ((n, *rest), (1, *rest)):
        mask = mask[:, None]
    if tuple(mask.shape) not in allowed:
        raise ValueError(
            f"mask must be of shape {(n, c, *rest)} like known, or have 1 for {n} or {c},"
            f" got {tuple(mask.shape)}"
        )
    return mask


def inpaint(
    sampler: Sampler,
    network: Callable[..., Tensor],
    known: Tensor,
    mask: Tensor,
    seed: int | Tensor,
    *,
    repeats: int = 1,
    sample_offset: int = 0,
    **options: Any,
) -> Tensor:
    """Samples that agree with `known` where `mask` is true.

    Args:
        sampler: With the levels and the prediction of the network.
        network: As in `Sampler.sample`.
        known: (N, ...) data; what stands outside of the mask is not looked at.
        mask: bool, true where `known` is known: of its shape, or with one sample or one channel for all.
        seed: Of the noise, as in `Sampler.sample`.
        repeats: How often each step is done, for samplers of one call a step (DDPM, DDIM, Euler).
        sample_offset: The number of the first sample.
        options: Further arguments of `Sampler.sample`.

    Returns:
        (N, ...), in the known places `known` itself.

    Raises:
        ValueError, TypeError: A mask or known of another shape or dtype, repeats below 1 or with another sampler.
    """
    mask = check_mask(mask, known)
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if repeats > 1 and not isinstance(sampler, (DDPM, DDIM, Euler)):
        raise ValueError(
            f"repeats must be 1 for {type(sampler).__name__}: only DDPM, DDIM and Euler can go back"
        )
    known = torch.where(mask, known, 0.0)
    levels = [stage.level for stage in sampler.stages]
    after = [*levels[1:], sampler.steps]

    def noised(level: int, stream: int) -> Tensor:
        ones = torch.ones(len(known), device=known.device, dtype=accumulation(known.dtype))
        alpha, sigma = (float(t[level]) for t in (sampler.alphas, sampler.sigmas))
        place: dict[str, Any] = {"stream": _KNOWN + stream, "sample_offset": sample_offset}
        return diffuse(known, alpha * ones, sigma * ones, seed, return_noise=False, **place)[0]

    # One noise for all levels of a deterministic sampler: the known places then move along one path.
    fresh = any(stage.noise for stage in sampler.stages)

    def replace(k: int, x: Tensor) -> Tensor:
        return torch.where(mask, noised(after[k], k + 1 if fresh else 0), x)

    x = sampler.initial_noise(
        known.shape, seed, sample_offset=sample_offset, dtype=known.dtype, device=known.device
    )
    x = torch.where(mask, noised(0, 0), x)  # before EDM raises the first level
    if repeats == 1:
        x = sampler.sample(network, x, seed, sample_offset=sample_offset, after=replace, **options)
    else:
        x = _repeated(sampler, network, x, seed, replace, repeats, sample_offset, options)
    return torch.where(mask, known, x)


def _repeated(
    sampler: Sampler,
    network: Callable[..., Tensor],
    x: Tensor,
    seed: int | Tensor,
    replace: Callable[[int, Tensor], Tensor],
    repeats: int,
    sample_offset: int,
    options: dict[str, Any],
) -> Tensor:
    """Every step `repeats` times, but the last, which ends at data."""
    learned = options.pop("learned_variance", False)
    asked = {name: options.pop(name, None) for name in ("condition", "no_condition", "guidance")}
    if options:
        raise ValueError(f"repeats must be 1 with {', '.join(options)}")
    alphas, sigmas = sampler.alphas, sampler.sigmas
    for k in range(sampler.steps):
        times = repeats if k + 1 < sampler.steps else 1
        for turn in range(times):
            place: dict[str, Any] = {"stream": turn * _REPEATS, "sample_offset": sample_offset}
            prediction, more = sampler.ask(network, k, x, **asked)
            if learned:
                prediction, more["variance"] = prediction.chunk(2, 1)
                if "unconditional" in more:
                    more["unconditional"] = more["unconditional"].chunk(2, 1)[0]
            x = replace(k, sampler.step(k, x, prediction, {}, seed, **place, **more))
            if turn + 1 < times:
                share = alphas[k] / alphas[k + 1]
                added = (sigmas[k] ** 2 - share**2 * sigmas[k + 1] ** 2).clamp(min=0) ** 0.5
                ones = torch.ones(len(x), device=x.device, dtype=accumulation(x.dtype))
                place["stream"] += _REPEATS // 2 + k
                x, _ = diffuse(
                    x, float(share) * ones, float(added) * ones, seed, return_noise=False, **place
                )
    return x
