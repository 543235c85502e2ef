"""denoise_step: one update of a diffusion sampler, whichever it is, in one pass.

    m       = prediction, or with guidance w:  unconditional + w (prediction - unconditional)
    x0      = x0_state x + x0_prediction m,  then bounded if asked for
    result  = state x + x0 * x0 + prediction m + history1 h1 + history2 h2 + history3 h3 + noise d z

where the names are those of `COEFFICIENTS`, a row of numbers for all samples or for each, h are up
to three earlier tensors, z is standard normal noise, and d is 1, or with a learned `variance` v in
[-1, 1] it is exp((log_min + (v + 1) / 2 (log_max - log_min)) / 2) (Nichol & Dhariwal 2021, equation
15). Since x0 is linear in x and in the prediction for every kind of prediction (noise, x0, v, flow
velocity, EDM's preconditioned network), DDPM, DDIM, Euler, Heun, DPM-Solver++, UniPC and Runge and
Kutta's methods are rows of coefficients.

Bounds on x0: `clip` keeps it in [-clip, clip]. With `quantile` p (dynamic thresholding, Saharia et
al. 2022) the bound is the p-quantile s of |x0| over each sample, at least `clip` and at most
`quantile_limit`, and the bounded x0 is multiplied by clip / s.

Guidance is Ho & Salimans 2022: w = 1 is the conditional prediction.

    x, history, noise, prediction, unconditional, variance   (N, ...), two dimensions or more, any layout
    coefficients   (11,) or (N, 11), floating point, on x's device: no host sync, whatever they are
    guidance       a number, or a tensor of shape () or (N,)

Computed in float32 (float64 for a float64 x) and rounded once. Where a gradient is asked for, the
reference serves: right, any number of times differentiable, and as slow as plain PyTorch; a
dynamic threshold is a constant to it. Deterministic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import (
    accumulation,
    check_float,
    forward_mode,
    needs_grad,
)
from ._denoise_step_calls import bad_calls, rows, samples
from ._denoise_step_kernels import (
    COEFFICIENTS,
    _bound,
    _bound_reference,
    _step,
    _step_reference,
    plain_step,
)
from ._registry import Op, register
from .diffuse import check_batch
from .random import noise_seed


def _like(argument: str, t: object, x: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """A tensor of x's shape, device and dtype; another floating-point dtype is converted."""
    if not isinstance(t, Tensor) or t.dtype != x.dtype:
        check_float(argument, t)
    assert isinstance(t, Tensor)
    if t.shape != shape or t.device != device:
        raise ValueError(
            f"{argument} must have shape {tuple(shape)} on {device} like x, "
            f"got {tuple(t.shape)} on {t.device}"
        )
    return t if t.dtype == x.dtype else t.to(x.dtype)


def _check_coefficients(
    coefficients: object, samples: int, device: torch.device, wide: torch.dtype
) -> Tensor:
    check_float("coefficients", coefficients)
    assert isinstance(coefficients, Tensor)
    shape, width = coefficients.shape, len(COEFFICIENTS)
    if shape != (width,) and shape != (samples, width):
        raise ValueError(
            f"coefficients must have shape ({width},) or ({samples}, {width}), a row or a row for each sample, "
            f"got {tuple(shape)}"
        )
    if coefficients.device != device:
        raise ValueError(f"coefficients must be on {device} like x, got {coefficients.device}")
    return coefficients if coefficients.dtype == wide else coefficients.to(wide)


def _check_guidance(guidance: object, x: Tensor) -> Tensor:
    if isinstance(guidance, int | float) and not isinstance(guidance, bool):
        return torch.full((), guidance, dtype=accumulation(x.dtype), device=x.device)
    check_float("guidance", guidance)
    assert isinstance(guidance, Tensor)
    if guidance.dim() and guidance.shape != x.shape[:1]:
        raise ValueError(
            f"guidance must be a number, or a tensor of shape () or ({x.size(0)},), got {tuple(guidance.shape)}"
        )
    if guidance.device != x.device:
        raise ValueError(f"guidance must be on {x.device} like x, got {guidance.device}")
    wide = accumulation(x.dtype)
    return (guidance if guidance.dtype == wide else guidance.to(wide)).contiguous()


def check_bounds(clip: float | None, quantile: float | None, limit: float | None) -> None:
    """Refuses bounds on x0 that are none."""
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise ValueError(f"clip must be finite and positive, or None, got {clip}")
    if quantile is None:
        if limit is not None:
            raise ValueError(f"quantile_limit must be None without a quantile, got {limit}")
        return
    if clip is None:
        raise ValueError("clip must be given with a quantile: the least bound, usually 1, got None")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}")
    if limit is not None and not limit >= clip:
        raise ValueError(f"quantile_limit must be at least clip, {clip}, got {limit}")


def denoise_step(
    x: Tensor,
    prediction: Tensor,
    coefficients: Tensor,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    add_noise: bool = False,
    unconditional: Tensor | None = None,
    guidance: float | Tensor | None = None,
    variance: Tensor | None = None,
    history1: Tensor | None = None,
    history2: Tensor | None = None,
    history3: Tensor | None = None,
    clip: float | None = None,
    quantile: float | None = None,
    quantile_limit: float | None = None,
    return_x0: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One update of a sampler: a linear combination of the state, the predicted x0, the prediction, earlier tensors and
    noise, whose factors are the row `coefficients`.

    Args:
        x: (N, ...) the state.
        prediction: (N, ...) the network's output; another dtype than x's is converted.
        coefficients: (11,) or (N, 11), floating point, in the order of `COEFFICIENTS`.
        seed: what the noise is made from, as in `random_normal`; drawn from torch's generator if None.
        stream: separates uses under one seed: the number of the step.
        sample_offset: the number of the first sample in the global batch.
        generator: the torch generator that a missing seed is drawn from.
        noise: given noise of x's shape and dtype, instead of a seed.
        add_noise: whether there is noise at all.
        unconditional: (N, ...) the network's output without the condition, for guidance.
        guidance: the guidance scale w; 1 is the conditional prediction.
        variance: (N, ...) the network's interpolation between log_min and log_max.
        history1, history2, history3: earlier tensors (N, ...).
        clip: the bound on |x0|.
        quantile: dynamic thresholding: the bound is this quantile of |x0|, at least `clip`.
        quantile_limit: the most that the quantile may be.
        return_x0: whether the bounded x0 is returned too.

    Returns:
        The next state, and x0 (None without `return_x0`): contiguous, of x's shape and dtype.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.
    """
    if (
        variance is quantile is quantile_limit is None
        and type(stream) is type(sample_offset) is int
    ):
        made = (seed, generator, stream, sample_offset) if add_noise and noise is None else None
        histories = (history1, history2, history3)
        if made or (
            seed is generator is None
            and (noise is not None) == add_noise
            and stream == sample_offset == 0
        ):
            given = (noise, made, unconditional, guidance, histories, clip, return_x0)
            found = plain_step(x, prediction, coefficients, *given)
            if found is not None:
                return found
    check_batch("x", x)
    # Read once: each costs as much as a check.
    shape, device = x.shape, x.device
    prediction = _like("prediction", prediction, x, shape, device)
    coefficients = _check_coefficients(coefficients, shape[0], device, accumulation(x.dtype))
    if (unconditional is None) != (guidance is None):
        missing, there = ("unconditional", "guidance")[:: 1 if unconditional is None else -1]
        raise ValueError(f"{missing} must be given with {there}, got None")
    scale = None
    if unconditional is not None:
        unconditional = _like("unconditional", unconditional, x, shape, device)
        scale = _check_guidance(guidance, x)
    if variance is not None:
        variance = _like("variance", variance, x, shape, device)
    if history1 is not None:
        history1 = _like("history1", history1, x, shape, device)
    if history2 is not None:
        history2 = _like("history2", history2, x, shape, device)
    if history3 is not None:
        history3 = _like("history3", history3, x, shape, device)
    if clip is not None or quantile is not None or quantile_limit is not None:
        check_bounds(clip, quantile, quantile_limit)
    key = None
    if add_noise:
        key = noise_seed(x, noise, seed, stream, sample_offset, generator)
    elif seed is not None or noise is not None or generator is not None:
        raise ValueError(
            "add_noise must be True where seed, noise or generator is given, got False"
        )
    plain = forward_mode() or needs_grad(
        *(x, prediction, unconditional, scale, variance, history1, history2, history3),
        *(coefficients, noise),
    )
    bound = None
    if quantile is not None:
        assert clip is not None
        most = math.inf if quantile_limit is None else quantile_limit
        tensors = (x, prediction, unconditional, scale, coefficients)
        with torch.no_grad():
            bound = _bound(
                *(None if t is None else t.detach() for t in tensors), quantile, clip, most
            )
    y, x0 = (_step_reference if plain else _step)(
        x,
        prediction,
        unconditional,
        scale,
        variance,
        history1,
        history2,
        history3,
        coefficients,
        bound,
        clip,
        noise,
        key,
        stream,
        sample_offset,
        return_x0,
    )
    return y, x0 if return_x0 else None


def denoise_step_reference(
    x: Tensor,
    prediction: Tensor,
    coefficients: Tensor,
    seed: int | Tensor | None = None,
    *,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    add_noise: bool = False,
    unconditional: Tensor | None = None,
    guidance: float | Tensor | None = None,
    variance: Tensor | None = None,
    history1: Tensor | None = None,
    history2: Tensor | None = None,
    history3: Tensor | None = None,
    clip: float | None = None,
    quantile: float | None = None,
    quantile_limit: float | None = None,
    return_x0: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    key = None
    if add_noise:
        key = noise_seed(x, noise, seed, stream, sample_offset, generator)
    scale = None if guidance is None else _check_guidance(guidance, x)
    row = coefficients.to(accumulation(x.dtype))
    bound = None
    if quantile is not None:
        assert clip is not None
        most = math.inf if quantile_limit is None else quantile_limit
        with torch.no_grad():
            at = x.detach(), prediction.detach()
            bound = _bound_reference(*at, unconditional, scale, row, quantile, clip, most)
    y, x0 = _step_reference(
        x,
        prediction,
        unconditional,
        scale,
        variance,
        history1,
        history2,
        history3,
        row,
        bound,
        clip,
        noise,
        key,
        stream,
        sample_offset,
        return_x0,
    )
    return y, x0 if return_x0 else None


register(
    Op(
        name="denoise_step",
        function=denoise_step,
        reference=denoise_step_reference,
        kernels=(_step, _bound),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=0,  # where a gradient is asked for, the reference serves
        # Normal numbers are good to 4 ulp of max(|z|, 1), and made ones are rounded to a half type.
        epsilon={
            torch.float32: 3e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 2e-2,
            torch.float16: 3e-3,
        },
        rows=rows,
    )
)
