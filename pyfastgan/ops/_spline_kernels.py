"""rational_quadratic_spline's operators: their schemas, what tracing sees of them, and the calls of the compiled
kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._common import TYPE_NUMBER, accumulation, fresh
from ._registry import Kernel
from ._spline_formulas import (
    _backward_reference,
    _bins_of,
    _check_domain,
    _forward_reference,
    _Settings,
    _sum,
)

_MOST_BINS = 64  # of the kernels; more are served by the reference


def _empty(x: Tensor) -> Tensor:
    return fresh(x, x.shape)


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    shape = x.shape if rest[-1] else x.shape[:1]
    return _empty(x), fresh(x, shape, accumulation(x.dtype))


def _backward_fake(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dh, dd = (x.new_empty(0) if t is None else _empty(t) for t in (heights, derivatives))
    return _empty(x), _empty(widths), dh, dd


def _rows_of(t: Tensor) -> tuple[Tensor, int]:
    """t and how far apart its rows lie, or those of a copy if they are not evenly spaced."""
    if t.is_contiguous():
        return t, t.size(-1)
    if t.size(-1) > 1 and t.stride(-1) != 1:
        return t.contiguous(), t.size(-1)
    step, expected = None, 0
    for k in range(t.dim() - 2, -1, -1):
        if t.size(k) == 1:
            continue
        if step is None:
            step = expected = t.stride(k)
        elif t.stride(k) != expected:
            return t.contiguous(), t.size(-1)
        expected *= t.size(k)
    return t, t.size(-1) if step is None else step


def _three(
    widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, bins: int
) -> tuple[list[Tensor], list[int]]:
    """The tensors to keep alive, and address and stride of widths, heights and derivatives."""
    if heights is None or derivatives is None:
        t, step = _rows_of(widths)
        address, size = t.data_ptr(), t.element_size()
        places = [address, address + bins * size, address + 2 * bins * size]
        return [t], [n for place in places for n in (place, step)]
    kept, numbers = [], []
    for t in (widths, heights, derivatives):
        t, step = _rows_of(t)
        kept.append(t)
        numbers += [t.data_ptr(), step]
    return kept, numbers


def _tail(x: Tensor, bins: int, s: _Settings) -> tuple[Any, ...]:
    """What both kernels take after their pointers."""
    return (
        TYPE_NUMBER[x.dtype],
        x.size(0),
        math.prod(x.shape[1:]),
        s.elementwise,
        bins,
        s.tails,
        s.low,
        s.range,
        s.min_width,
        s.min_height,
        s.min_derivative,
        s.scale,
        s.pull,
        s.slope_pull,
        s.exponent,
        s.inverse,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    if bins > _MOST_BINS:
        return _forward_reference(x, widths, heights, derivatives, *settings)
    _check_domain(x, s)
    x = x.contiguous()
    y, logdet = _forward_fake(x, s.elementwise)
    kept, logits = _three(widths, heights, derivatives, bins)
    _backends.native("_cpu").rational_quadratic_spline(
        x.data_ptr(), *logits, y.data_ptr(), logdet.data_ptr(), *_tail(x, bins, s)
    )
    return y, logdet


def _backward_cpu(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    if bins > _MOST_BINS:
        return _backward_reference(dy, dlogdet, x, widths, heights, derivatives, *settings)
    dy, dlogdet, x = dy.contiguous(), dlogdet.contiguous(), x.contiguous()
    dx, dw, dh, dd = _backward_fake(dy, dlogdet, x, widths, heights, derivatives)
    kept, logits = _three(widths, heights, derivatives, bins)
    packed = heights is None
    _, gradients = _three(dw, None if packed else dh, None if packed else dd, bins)
    _backends.native("_cpu").rational_quadratic_spline_backward(
        dy.data_ptr(),
        dlogdet.data_ptr(),
        x.data_ptr(),
        *logits,
        dx.data_ptr(),
        *gradients,
        *_tail(x, bins, s),
    )
    return dx, dw, dh, dd


def _numbers(s: _Settings) -> tuple[Any, ...]:
    """What both CUDA kernels take after the number of bins, and the stream."""
    numbers = (s.tails, s.low, s.range, s.min_width, s.min_height, s.min_derivative, s.scale)
    queue = torch.cuda.current_stream().cuda_stream
    return (*numbers, s.pull, s.slope_pull, s.exponent, s.inverse, queue)


def _forward_cuda(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    _check_domain(x, s)
    x = x.contiguous()
    y, log = _forward_fake(x, True)
    kept, logits = _three(widths, heights, derivatives, bins)
    outputs = (y.data_ptr(), log.data_ptr(), TYPE_NUMBER[x.dtype], x.numel(), bins)
    with torch.cuda.device(x.device):
        _backends.native("_cuda").rational_quadratic_spline(
            x.data_ptr(), *logits, *outputs, *_numbers(s)
        )
    return y, _sum(log, s.elementwise)


def _backward_cuda(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = _Settings(*settings)
    bins = widths.size(-1) if heights is not None else _bins_of(widths.size(-1), s.tails)
    if not s.elementwise:
        dlogdet = dlogdet.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    dy, dlogdet, x = dy.contiguous(), dlogdet.contiguous(), x.contiguous()
    dx, dw, dh, dd = _backward_fake(dy, dlogdet, x, widths, heights, derivatives)
    kept, logits = _three(widths, heights, derivatives, bins)
    packed = heights is None
    _, gradients = _three(dw, None if packed else dh, None if packed else dd, bins)
    inputs = (dy.data_ptr(), dlogdet.data_ptr(), x.data_ptr())
    with torch.cuda.device(x.device):
        _backends.native("_cuda").rational_quadratic_spline_backward(
            *inputs,
            *logits,
            dx.data_ptr(),
            *gradients,
            TYPE_NUMBER[x.dtype],
            x.numel(),
            bins,
            *_numbers(s),
        )
    return dx, dw, dh, dd


_SCHEMA = (
    "bool inverse, bool tails, float low, float range, float min_width, float min_height, float min_derivative, "
    "float scale, float pull, float slope_pull, bool exponent, bool elementwise"
)
# Without heights and derivatives, widths holds all three one after the other.

_forward = Kernel(
    f"rational_quadratic_spline(Tensor x, Tensor widths, Tensor? heights, Tensor? derivatives, {_SCHEMA}) "
    "-> (Tensor y, Tensor logdet)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
)
_backward = Kernel(
    "rational_quadratic_spline_backward(Tensor dy, Tensor dlogdet, Tensor x, Tensor widths, Tensor? heights, "
    f"Tensor? derivatives, {_SCHEMA}) -> (Tensor dx, Tensor dwidths, Tensor dheights, Tensor dderivatives)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
)
