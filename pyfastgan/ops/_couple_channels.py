"""An affine coupling of some channels of x while the others pass, and what may stand behind it, in one pass.

    x           (N, C, ...), of which the first C - c channels pass
    out         (N, 2 c, ...), what a network made of them: raw scales, then shifts, both times `factor`
    z           (x1, coupling of x2), see `affine_coupling`
    y, logdet   z, or with `Behind` the channels of z scale + offset in another order; logdet (N,), the scale's included

For float32 and float64. Only x, out and the scale are kept for the backward pass. Differentiable any number of times,
from the first order on by torch's operations. Deterministic.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._layout import in_rows
from .._names import check_choice
from . import _backends
from ._affine_coupling_kernels import SCALES, _address_and_stride, _log_scale
from ._common import TYPE_NUMBER, address, apply, forward_mode, fresh, needs_grad
from ._registry import Kernel


class Behind(NamedTuple):
    """An affine map of each channel, of (C,) or a shape like (1, C, 1, 1), and a permutation.

    Channel i of y is channel order[i] of z, channel j of z stands at place[j] of y; both int64 (C,).
    """

    scale: Tensor
    offset: Tensor
    order: Tensor
    place: Tensor


def _along(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(1, -1, *[1] * (x.dim() - 2))


def _forward_reference(
    x: Tensor,
    out: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    order: Tensor | None,
    place: Tensor | None,
    map: str,
    clamp: float,
    factor: float,
    first: bool,
) -> tuple[Tensor, Tensor]:
    coupled = out.size(1) // 2
    x1, x2 = x.split((x.size(1) - coupled, coupled), 1)
    raw, shift = (factor * out).split(coupled, 1)
    log = _log_scale(raw, map, clamp)
    y2 = (x2 + shift) * log.exp() if first else x2 * log.exp() + shift
    y = torch.cat((x1, y2), 1)
    logdet = log.reshape(len(log), math.prod(log.shape[1:])).sum(1)
    if scale is None:
        return y, logdet
    assert offset is not None
    assert order is not None
    y = torch.addcmul(_along(offset, x), y, _along(scale, x)).index_select(1, order)
    return y, logdet + math.prod(x.shape[2:]) * scale.log().sum()


def _backward_reference(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    out: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    order: Tensor | None,
    place: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, out, scale, offset)]
    wanted = [t for t in leaves if t is not None]
    with torch.enable_grad():
        outputs = _forward_reference(*leaves, order, place, *settings)  # type: ignore[call-arg, arg-type]
        found = list(torch.autograd.grad(outputs, wanted, (dy, dlogdet)))
    found += [x.new_empty(0)] * (4 - len(found))
    dx, dout, dscale, doffset = (t.contiguous() for t in found)
    return dx, dout, dscale, doffset


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return fresh(x, x.shape), x.new_empty(x.size(0))


def _backward_fake(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    out: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ds, do = (x.new_empty(0 if t is None else t.shape) for t in (scale, offset))
    return fresh(x, x.shape), fresh(x, out.shape), ds, do


def _tail(
    x: Tensor, out: Tensor, map: str, clamp: float, factor: float, first: bool
) -> tuple[Any, ...]:
    """What both kernels take after their pointers."""
    samples, channels, *inner = x.shape
    return (
        TYPE_NUMBER[x.dtype],
        samples,
        channels,
        channels - out.size(1) // 2,
        math.prod(inner),
        SCALES[map],
        clamp,
        factor,
        first,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor,
    out: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    order: Tensor | None,
    place: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    y, logdet = _forward_fake(x)
    x, out = in_rows(y, x, out)
    behind: tuple[int | None, ...] = (None, None, None)
    if scale is not None:
        assert offset is not None
        assert order is not None
        scale, offset = scale.contiguous(), offset.contiguous()
        behind = (scale.data_ptr(), offset.data_ptr(), order.data_ptr())
    _backends.native("_cpu").couple_channels(
        *_address_and_stride(x),
        *_address_and_stride(out),
        *behind,
        address(y),
        logdet.data_ptr(),
        *_tail(x, out, *settings),
    )
    return y, logdet


def _backward_cpu(
    dy: Tensor,
    dlogdet: Tensor,
    x: Tensor,
    out: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    order: Tensor | None,
    place: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dout, dscale, doffset = results = _backward_fake(dy, dlogdet, x, out, scale, offset)
    dy, x, out = in_rows(dx, dy, x, out)
    dlogdet = dlogdet.contiguous()
    behind: tuple[int | None, ...] = (None, None)
    if scale is not None:
        assert place is not None
        scale = scale.contiguous()
        behind = (scale.data_ptr(), place.data_ptr())
    _backends.native("_cpu").couple_channels_backward(
        *_address_and_stride(dy),
        dlogdet.data_ptr(),
        *_address_and_stride(x),
        *_address_and_stride(out),
        *behind,
        address(dx),
        address(dout),
        dscale.data_ptr(),
        doffset.data_ptr(),
        *_tail(x, out, *settings),
    )
    return results


_INPUTS = "Tensor x, Tensor out, Tensor? scale, Tensor? offset, Tensor? order, Tensor? place"
_SETTINGS = "str map, float clamp, float factor, bool shift_first"

_forward = Kernel(
    f"couple_channels({_INPUTS}, {_SETTINGS}) -> (Tensor y, Tensor logdet)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
)
_backward = Kernel(
    f"couple_channels_backward(Tensor dy, Tensor dlogdet, {_INPUTS}, {_SETTINGS}) "
    "-> (Tensor dx, Tensor dout, Tensor dscale, Tensor doffset)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
)
KERNELS = (_forward, _backward)


class _Couple(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs[:6])
        ctx.settings = inputs[6:]
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlogdet: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        if needs_grad(dy, dlogdet, *inputs):
            # Names of their own, since the inputs depend on each other: `out` is a function of x.
            inputs = [None if t is None else t.view_as(t) for t in inputs]
            outputs = _forward_reference(*inputs, *ctx.settings)
            wanted = [t for t in inputs[:4] if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(outputs, wanted, (dy, dlogdet), create_graph=True))
            gradients = [next(found) if t is not None and t.requires_grad else None for t in inputs]
            return *gradients, None, None, None, None
        dx, dout, dscale, doffset = _backward(dy, dlogdet, *inputs, *ctx.settings)
        if inputs[2] is None:
            return dx, dout, *(None,) * 8
        return dx, dout, dscale, doffset, *(None,) * 6


class _Halves(torch.autograd.Function):
    """x's first channels and x; the gradient of the former is added in place to that of the latter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        ctx.kept = kept
        return x.narrow(1, 0, kept), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx1: Tensor, dx: Tensor) -> tuple[Tensor, None]:
        if needs_grad(dx1, dx):
            dx = dx.clone()
        # Else it is what `_Couple` has just made, and nobody else sees it.
        dx.narrow(1, 0, ctx.kept).add_(dx1)
        return dx, None


def serves(x: Tensor) -> bool:
    """Whether `couple_channels` may be called for x; elsewhere `affine_coupling` and torch's operations do it."""
    return (
        x.is_cpu
        and (x.dtype is torch.float32 or x.dtype is torch.float64)
        and x.is_contiguous()
        and _backends.choice.name not in ("triton", "cuda")
        and not traced()
    )


def traced() -> bool:
    """Whether kernels that know nothing of tracing, tangents or torch.func have to stay away."""
    return (
        torch.compiler.is_compiling()
        or forward_mode()
        or torch._C._are_functorch_transforms_active()
    )


def halves(x: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """x's first `kept` channels, and x for `couple_channels`, the only one that it may be given to."""
    if needs_grad(x):
        x1, whole = apply(_Halves, x, kept)
        return x1, whole
    return x.narrow(1, 0, kept), x


def couple_channels(
    x: Tensor,
    out: Tensor,
    *,
    scale: str,
    clamp: float = 2.0,
    shift_first: bool = False,
    factor: float = 1.0,
    behind: Behind | None = None,
) -> tuple[Tensor, Tensor]:
    """See above; x as `serves` wants it. `scale`, `clamp` and `shift_first` are those of `affine_coupling`."""
    check_choice("scale", scale, SCALES)
    if not 0 < clamp < math.inf:
        raise ValueError(f"clamp must be finite and positive, got {clamp}")
    coupled = out.size(1) // 2 if out.dim() > 1 else 0
    if out.shape != (len(x), 2 * coupled, *x.shape[2:]) or coupled > x.size(1):
        raise ValueError(
            f"out must hold a raw scale and a shift for channels of x, {tuple(x.shape)}, got {tuple(out.shape)}"
        )
    if out.dtype != x.dtype:
        raise TypeError(f"out must have the dtype of x, {x.dtype}, got {out.dtype}")
    if not (out.is_cpu and all(t.is_cpu for t in behind or ())):
        raise ValueError("out and what stands behind must be on a CPU like x")
    if behind is not None and any(t.numel() != x.size(1) for t in behind):
        raise ValueError(f"what stands behind must have {x.size(1)} channels like x")
    settings = (scale, float(clamp), float(factor), bool(shift_first))
    tensors = behind or (None, None, None, None)
    if needs_grad(x, out, *tensors[:2]):
        y, logdet = apply(_Couple, x, out, *tensors, *settings)
        return y, logdet
    return _forward(x, out, *tensors, *settings)
