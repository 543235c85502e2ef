"""The kernels of `denoise_step` and their references: the step, and the bound of a dynamic threshold."""

from __future__ import annotations

import functools
import math
from array import array
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling as _is_compiling

from . import _backends
from ._backends import choice as _choice
from ._common import FEW, TYPE_NUMBER, accumulation, address, forward_mode, fresh, fresh_like
from ._diffuse_kernels import column, launch, normals_like
from ._random_kernels import place_of_seed
from ._registry import Kernel, is_plain_call
from .random import noise_arguments

# The order of csrc/math/denoise.h.
COEFFICIENTS = (
    "x0_state",
    "x0_prediction",
    "state",
    "x0",
    "prediction",
    "noise",
    "history1",
    "history2",
    "history3",
    "log_min",
    "log_max",
)
_WIDTH = len(COEFFICIENTS)


def _wide(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.to(accumulation(t.dtype)) for t in tensors]


def _columns(coefficients: Tensor, x: Tensor) -> list[Tensor]:
    """Each coefficient as a tensor that multiplies samples."""
    table = coefficients.expand(x.size(0), -1)
    return [column(table[:, k], x) for k in range(len(COEFFICIENTS))]


def _guided(prediction: Tensor, unconditional: Tensor | None, guidance: Tensor | None) -> Tensor:
    if unconditional is None or guidance is None:
        return prediction
    scale = column(guidance.expand(prediction.size(0)), prediction)
    return unconditional + scale * (prediction - unconditional)


def _bound_reference(
    x: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    quantile: float,
    least: float,
    most: float,
) -> Tensor:
    x, prediction, unconditional = _wide(x, prediction, unconditional)
    x0_state, x0_prediction, *_ = _columns(coefficients, x)
    x0 = x0_state * x + x0_prediction * _guided(prediction, unconditional, guidance)
    if x0.numel() == 0:
        return x0.new_full((x.size(0),), least)
    order = x0.flatten(1).abs().sort(1).values
    rank = quantile * (order.size(1) - 1)
    low = order[:, int(rank)]
    high = order[:, min(int(rank) + 1, order.size(1) - 1)]
    bound = torch.where(low == high, low, low + (rank - int(rank)) * (high - low))
    # NaN comes last in order, and goes to the quantile from anywhere.
    bound = torch.where(order[:, -1].isnan(), order[:, -1], bound)
    return bound.clamp(least, most)


def _step_reference(
    x: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    variance: Tensor | None,
    history1: Tensor | None,
    history2: Tensor | None,
    history3: Tensor | None,
    coefficients: Tensor,
    bound: Tensor | None,
    clip: float | None,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: int,
    sample_offset: int,
    return_x0: bool,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    x = x.contiguous()
    if seed is not None:
        noise = normals_like(x, seed, stream, sample_offset)
    x, m, unconditional, variance, noise = _wide(x, prediction, unconditional, variance, noise)
    x0_state, x0_prediction, state, by_x0, by_prediction, deviation, *rest = _columns(
        coefficients, x
    )
    *by_history, log_min, log_max = rest
    m = _guided(m, unconditional, guidance)
    x0 = x0_state * x + x0_prediction * m
    if clip is not None and bound is None:
        x0 = torch.where(x0.abs() > clip, x0.clamp(-clip, clip), x0)
    elif clip is not None and bound is not None:
        limit = column(bound, x)
        x0 = torch.where(x0.abs() > limit, limit * x0.sign(), x0) * (clip / limit)
    y = state * x + by_x0 * x0 + by_prediction * m
    for factor, earlier in zip(by_history, (history1, history2, history3)):
        if earlier is not None:
            y = y + factor * earlier.to(y.dtype)
    if noise is not None:
        if variance is not None:
            log_variance = log_min + 0.5 * (variance + 1) * (log_max - log_min)
            deviation = deviation * torch.exp(0.5 * log_variance)
        y = y + deviation * noise
    return y.to(dtype).contiguous(), x0.to(dtype) if return_x0 else x.new_empty(0, dtype=dtype)


def _bound_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.size(0), dtype=accumulation(x.dtype))


def _step_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return fresh(x, x.shape), fresh(x, x.shape if rest[-1] else (0,))


def _strides(guidance: Tensor | None, coefficients: Tensor) -> tuple[int, int]:
    """From a sample to the next: 0 where all share a number or a row."""
    return (
        0 if guidance is None or guidance.dim() == 0 else 1,
        _WIDTH if coefficients.dim() == 2 else 0,
    )


def _bound_cpu(
    x: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    coefficients: Tensor,
    quantile: float,
    least: float,
    most: float,
) -> Tensor:
    x, prediction, coefficients = x.contiguous(), prediction.contiguous(), coefficients.contiguous()
    unconditional = None if unconditional is None else unconditional.contiguous()
    if x.numel() == 0:
        return _bound_fake(x).fill_(least)
    bound = _bound_fake(x)
    guidance_stride, row_stride = _strides(guidance, coefficients)
    _backends.native("_cpu").denoise_bound(
        x.data_ptr(),
        prediction.data_ptr(),
        address(unconditional),
        address(guidance),
        guidance_stride,
        coefficients.data_ptr(),
        row_stride,
        quantile,
        least,
        most,
        bound.data_ptr(),
        TYPE_NUMBER[x.dtype],
        x.size(0),
        x.numel() // x.size(0),
        torch.get_num_threads(),
    )
    return bound


def _step_native(
    backend: str,
    x: Tensor,
    prediction: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    variance: Tensor | None,
    history1: Tensor | None,
    history2: Tensor | None,
    history3: Tensor | None,
    coefficients: Tensor,
    bound: Tensor | None,
    clip: float | None,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: int,
    sample_offset: int,
    return_x0: bool,
) -> tuple[Tensor, Tensor | None]:
    # Contiguous copies live in these names until the kernel is done.
    x, prediction, coefficients = x.contiguous(), prediction.contiguous(), coefficients.contiguous()
    if unconditional is not None and guidance is not None:
        unconditional, guidance = unconditional.contiguous(), guidance.contiguous()
    if noise is not None:
        noise = noise.contiguous()
    if history1 is not None:
        history1 = history1.contiguous()
    if history2 is not None:
        history2 = history2.contiguous()
    if history3 is not None:
        history3 = history3.contiguous()
    if variance is not None:
        variance = variance.contiguous()
    y = fresh(x, x.shape)
    x0 = fresh(x, x.shape) if return_x0 else None
    seed, counter = noise_arguments(seed, x.shape, stream, sample_offset)
    guidance_stride, row_stride = _strides(guidance, coefficients)
    launch(
        backend,
        "denoise_step",
        x,
        x.data_ptr(),
        prediction.data_ptr(),
        None if unconditional is None else unconditional.data_ptr(),
        None if guidance is None else guidance.data_ptr(),
        guidance_stride,
        None if variance is None else variance.data_ptr(),
        None if history1 is None else history1.data_ptr(),
        None if history2 is None else history2.data_ptr(),
        None if history3 is None else history3.data_ptr(),
        coefficients.data_ptr(),
        row_stride,
        None if bound is None else bound.data_ptr(),
        math.nan if clip is None else clip,
        None if noise is None else noise.data_ptr(),
        address(y),
        address(x0),
        TYPE_NUMBER[x.dtype],
        *counter,
    )
    return y, x0


_bound = Kernel(
    "denoise_bound(Tensor x, Tensor prediction, Tensor? unconditional, Tensor? guidance, "
    "Tensor coefficients, float quantile, float least, float most) -> Tensor",
    reference=_bound_reference,
    fake=_bound_fake,
    cpu=_bound_cpu,
    cuda=_bound_reference,  # a sort, which torch has
)
# coefficients, guidance and bound are of the computing dtype. There is no noise without `noise` or `seed`; the second
# output is empty unless x0 is wanted.
_step = Kernel(
    "denoise_step(Tensor x, Tensor prediction, Tensor? unconditional, Tensor? guidance, Tensor? variance, "
    "Tensor? history1, Tensor? history2, Tensor? history3, Tensor coefficients, Tensor? bound, float? clip, "
    "Tensor? noise, Tensor? seed, int stream, SymInt sample_offset, bool return_x0) -> (Tensor y, Tensor x0)",
    reference=_step_reference,
    fake=_step_fake,
    cpu=functools.partial(_step_native, "cpu"),
    cuda=functools.partial(_step_native, "cuda"),
)


# Called past all that calls usually go through, which takes as long as the kernel does over a quarter of a million
# elements.
_kernel = _backends.cpu_kernel("denoise_step")


def plain_step(
    x: Any,
    prediction: Any,
    coefficients: Any,
    noise: Any,
    made: tuple[Any, Any, Any, Any] | None,
    unconditional: Any,
    guidance: Any,
    histories: tuple[Any, Any, Any],
    clip: Any,
    return_x0: Any,
) -> tuple[Tensor, Tensor | None] | None:
    """A call without learned variance or dynamic threshold on a CPU: contiguous tensors of one type that nothing is
    recorded for. `made` is the seed, generator, stream and sample_offset of noise to be made. None for all else, calls
    with a mistake among them."""
    if (
        _is_compiling()
        or _kernel is None
        or (_choice.name != "auto" and _choice.name != "cpu")
        or type(x) is not Tensor
        or type(coefficients) is not Tensor
        or forward_mode()
        or not is_plain_call()
    ):
        return None
    dtype, shape, size = x.dtype, x.shape, x.numel()
    if (
        not (dtype is torch.float32 or dtype is torch.float64)
        or len(shape) < 2
        or size == 0
        or coefficients.dtype is not dtype
        or not (coefficients.is_cpu and coefficients.is_contiguous())
    ):
        return None
    samples, table = shape[0], coefficients.shape
    if table != (_WIDTH,) and table != (samples, _WIDTH):
        return None
    history1, history2, history3 = histories
    recorded = coefficients.requires_grad
    places: list[int | None] = []
    for t in (x, prediction, noise, unconditional, history1, history2, history3):
        if t is None:
            places.append(None)
            continue
        if (
            type(t) is not Tensor
            or t.dtype is not dtype
            or t.shape != shape
            or not (t.is_cpu and t.is_contiguous())
        ):
            return None
        recorded = recorded or t.requires_grad
        places.append(t.data_ptr())
    if places[1] is None or (recorded and torch.is_grad_enabled()):
        return None
    scale, scale_place, scale_stride = None, None, 0
    if unconditional is None:
        if guidance is not None:
            return None
    elif type(guidance) is Tensor:
        scale_stride = guidance.dim()
        if (
            guidance.dtype is not dtype
            or scale_stride > 1
            or (scale_stride and guidance.numel() != samples)
            or not (guidance.is_cpu and guidance.is_contiguous())
            or (guidance.requires_grad and torch.is_grad_enabled())
        ):
            return None
        scale_place = guidance.data_ptr()
    elif (type(guidance) is float or type(guidance) is int) and -1e38 < guidance < 1e38:
        scale = array("f" if dtype is torch.float32 else "d", (guidance,))
        scale_place = scale.buffer_info()[0]
    else:
        return None
    if clip is None:
        clip = math.nan
    elif not (type(clip) is float or type(clip) is int) or not 0 < clip < 1e38:
        return None
    place, stream, offset = None, 0, 0
    if made is not None:
        seed, generator, stream, offset = made
        if not (0 <= stream < 2**32 and 0 <= offset <= 2**32 - samples):
            return None
        place = place_of_seed(seed, generator)  # last, since it may draw
        if place is None:
            return None
    new = torch.empty_like if size <= FEW else fresh_like
    y = new(x)
    x0 = new(x) if return_x0 else None
    _kernel(
        places[0],
        places[1],
        places[3],
        scale_place,
        scale_stride,
        None,
        places[4],
        places[5],
        places[6],
        coefficients.data_ptr(),
        0 if len(table) == 1 else _WIDTH,
        None,
        clip,
        places[2],
        y.data_ptr(),
        None if x0 is None else x0.data_ptr(),
        TYPE_NUMBER[dtype],
        samples,
        size // samples,
        place,
        0,
        stream,
        offset,
        torch.get_num_threads(),
    )
    return y, x0
