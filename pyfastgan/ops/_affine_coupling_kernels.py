"""The kernels of `affine_coupling`: scales, their formulas in plain PyTorch, and launches."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._layout import in_rows, is_channels_last
from . import _backends
from ._common import TYPE_NUMBER, accumulation, address, dense, dense_like, fresh
from ._registry import Kernel

# The numbers the kernels know them by.
SCALES = {"exp": 0, "tanh": 1, "sigmoid": 2, "softclamp": 3, "clamped_tanh": 4}


def _log_scale(raw: Tensor, scale: str, clamp: float) -> Tensor:
    if scale == "exp":
        return raw
    if scale == "tanh":
        return raw.tanh()
    if scale == "sigmoid":
        return F.logsigmoid(raw + 2)
    if scale == "clamped_tanh":
        return clamp * raw.tanh()
    # float16 may hold neither clamp nor s / clamp.
    wide = raw.to(accumulation(raw.dtype))
    return (clamp * 0.636 * torch.atan(wide / clamp)).to(raw.dtype)


def _log_scale_slope(raw: Tensor, scale: str, clamp: float) -> Tensor:
    if scale == "exp":
        return torch.ones_like(raw)
    if scale == "tanh":
        return 1 - raw.tanh().square()
    if scale == "sigmoid":
        return torch.sigmoid(-(raw + 2))
    if scale == "clamped_tanh":
        return clamp * (1 - raw.tanh().square())
    return 0.636 / (1 + (raw / clamp).square())


def affine_coupling_reference(
    x: Tensor,
    raw_scale: Tensor,
    shift: Tensor,
    *,
    scale: str = "exp",
    clamp: float = 2.0,
    shift_first: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    log = _log_scale(raw_scale, scale, clamp)
    if inverse:
        factor = torch.exp(-log)
        y = x * factor - shift if shift_first else (x - shift) * factor
    else:
        factor = torch.exp(log)
        y = (x + shift) * factor if shift_first else x * factor + shift
    sums = accumulation(x.dtype)
    wide = log if log.dtype is sums else _log_scale(raw_scale.to(sums), scale, clamp)
    logdet = (wide if x.dim() == 2 else wide.reshape(x.size(0), math.prod(x.shape[1:]))).sum(1)
    return y, -logdet if inverse else logdet


def _forward_reference(
    x: Tensor, raw: Tensor, shift: Tensor, scale: str, clamp: float, first: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    x = dense(x)
    y, logdet = affine_coupling_reference(
        x, raw, shift, scale=scale, clamp=clamp, shift_first=first, inverse=inverse
    )
    return dense_like(y, x), logdet


def _gradients(
    dy: Tensor,
    dlogdet: Tensor,
    kept: Tensor,
    raw: Tensor,
    scale: str,
    clamp: float,
    first: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and raw_scale, by formulas that autograd can follow. The inverse undoes the two steps in the
    other order: `kept` is the output where the shift comes before the factor, else the input."""
    out_dtype = kept.dtype
    dy, kept, raw = (t.to(accumulation(out_dtype)) for t in (dy, kept, raw))
    sign = -1.0 if inverse else 1.0
    dx = dy * torch.exp(sign * _log_scale(raw, scale, clamp))
    by_log = (dy if first != inverse else dx) * kept
    by_log = by_log + dlogdet.reshape(-1, *[1] * (kept.dim() - 1))
    draw = sign * by_log * _log_scale_slope(raw, scale, clamp)
    return dx.to(out_dtype), draw.to(out_dtype)


def _backward_reference(dy: Tensor, dlogdet: Tensor, kept: Tensor, *rest: Any) -> Any:
    dx, draw = _gradients(dy, dlogdet, kept, *rest)
    like = dense(kept)
    return dense_like(dx, like), dense_like(draw, like)


def _fresh_dense(x: Tensor) -> Tensor:
    return fresh(x, x.shape, channels_last=is_channels_last(x) and not x.is_contiguous())


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fresh_dense(x), x.new_empty(x.size(0), dtype=accumulation(x.dtype))


def _backward_fake(dy: Tensor, dlogdet: Tensor, kept: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fresh_dense(kept), _fresh_dense(kept)


def _address_and_stride(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.stride(0) if x.size(0) > 1 else x.numel()


def _tail(x: Tensor, scale: str, clamp: float, first: bool, inverse: bool) -> tuple[Any, ...]:
    """What both kernels take after their pointers."""
    size = math.prod(x.shape[1:])
    # The inverse undoes the steps in the other order.
    return (
        TYPE_NUMBER[x.dtype],
        x.size(0),
        size,
        SCALES[scale],
        clamp,
        first != inverse,
        inverse,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor, raw: Tensor, shift: Tensor, scale: str, clamp: float, first: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    y, logdet = _forward_fake(x)
    x, raw, shift = in_rows(y, x, raw, shift)
    _backends.native("_cpu").affine_coupling(
        *_address_and_stride(x),
        *_address_and_stride(raw),
        *_address_and_stride(shift),
        address(y),
        logdet.data_ptr(),
        *_tail(y, scale, clamp, first, inverse),
    )
    return y, logdet


def _backward_cpu(
    dy: Tensor,
    dlogdet: Tensor,
    kept: Tensor,
    raw: Tensor,
    scale: str,
    clamp: float,
    first: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    dx, draw = _backward_fake(dy, dlogdet, kept)
    dy, kept, raw = in_rows(dx, dy, kept, raw)
    dlogdet = dlogdet.contiguous()
    _backends.native("_cpu").affine_coupling_backward(
        *_address_and_stride(dy),
        dlogdet.data_ptr(),
        *_address_and_stride(kept),
        *_address_and_stride(raw),
        address(dx),
        address(draw),
        *_tail(dx, scale, clamp, first, inverse),
    )
    return dx, draw


_SETTINGS = "str scale, float clamp, bool shift_first, bool inverse"

_forward = Kernel(
    f"affine_coupling(Tensor x, Tensor raw_scale, Tensor shift, {_SETTINGS}) -> (Tensor y, Tensor logdet)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    triton="affine_coupling:affine_coupling",
)
# The gradient of the shift is dy, dx, or the negative of one of them: no kernel has to write it.
_backward = Kernel(
    f"affine_coupling_backward(Tensor dy, Tensor dlogdet, Tensor kept, Tensor raw_scale, {_SETTINGS}) "
    "-> (Tensor dx, Tensor draw_scale)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    triton="affine_coupling:affine_coupling_backward",
)
