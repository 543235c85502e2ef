"""affine_coupling: y = x S + t, its inverse and its log-determinant in one pass.

    x, raw_scale, shift   (N, ...), all of one shape
    S                     scale = "exp": exp(s); "tanh": exp(tanh s); "sigmoid": sigmoid(s + 2);
                          "softclamp": exp(c 0.636 atan(s / c)); "clamped_tanh": exp(c tanh s); c = clamp
    y                     x S + t, or with shift_first (x + t) S; with inverse the x that gives this
    logdet                (N,): the sum of log S over a sample, negated for the inverse

The scales are those of RealNVP (Dinh et al. 2017, exp of a tanh; the learned factor of the tanh is the
network's), Glow (Kingma and Dhariwal 2018, sigmoid and shift first) and FrEIA's soft clamp.

Differentiable any number of times, from the first order on by formulas in torch's operations; also with
`torch.func` and in forward mode, which the reference serves. Deterministic. Kept for the backward pass:
raw_scale, and y where the shift comes first, else x; so that no more is read than must be. From a y of a half
type the gradient of raw_scale has its rounding, as y would have as the input of a next layer.

The log-determinant is accumulated in float32 or better (float64 for float64) and returned in float32
(float64). Under autocast raw_scale and shift are cast to x's dtype, so that a half-precision network
does not round the flow's own variables; otherwise the three must agree.

On a CPU small tensors of float32 and float64 (up to 4096 elements for exp, 1024 for tanh) that are recorded for a
gradient are left to torch's own operations unless a backend is asked for by name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling as _is_compiling

from .._names import check_choice
from . import _backends
from ._affine_coupling_calls import bad_calls, rows, samples
from ._affine_coupling_kernels import (
    SCALES,
    _backward,
    _forward,
    _gradients,
    affine_coupling_reference,
)
from ._backends import choice as _choice
from ._common import (
    FEW,
    TYPE_NUMBER,
    apply,
    check_float,
    forward_mode,
    needs_grad,
    under_autocast,
)
from ._registry import Op, is_plain_call, register


class _AffineCoupling(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, raw: Tensor, shift: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        return _forward(x, raw, shift, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, raw, _, *ctx.settings = inputs
        _, _, first, inverse = ctx.settings
        ctx.save_for_backward(output[0] if first != inverse else x, raw)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlogdet: Tensor) -> tuple[Any, ...]:
        kept, raw = ctx.saved_tensors
        _, _, first, inverse = ctx.settings
        call = _gradients if needs_grad(dy, dlogdet, kept, raw) else _backward
        dx, draw = call(dy, dlogdet, kept, raw, *ctx.settings)
        dshift = dx if first != inverse else dy
        return dx, draw, -dshift if inverse else dshift, None, None, None, None


def _check(x: Tensor, raw_scale: Tensor, shift: Tensor, scale: str, clamp: float) -> None:
    check_float("x", x)
    check_choice("scale", scale, SCALES)
    if x.dim() < 1:
        raise ValueError("x must have a batch dimension 0, got a tensor without dimensions")
    for name, t in (("raw_scale", raw_scale), ("shift", shift)):
        check_float(name, t)
        if t.shape != x.shape:
            raise ValueError(
                f"{name} must have the shape of x, {tuple(x.shape)}, got {tuple(t.shape)}"
            )
        if t.device != x.device:
            raise ValueError(f"{name} must be on {x.device} like x, got {t.device}")
        if t.dtype != x.dtype and not under_autocast(x.device):
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
    if not (math.isfinite(clamp) and clamp > 0):
        raise ValueError(f"clamp must be finite and positive, got {clamp}")


# On a CPU, up to this many elements torch's own few calls are sooner back than one of ours that has to be recorded for
# a gradient; one that has not is for the kernel, past all that its calls usually go through, up to FEW of them.
_SMALL = {"exp": 4096, "tanh": 1024}
_kernel = _backends.cpu_kernel("affine_coupling")


def _small(
    x: Tensor,
    raw_scale: Tensor,
    shift: Tensor,
    scale: str,
    clamp: float,
    shift_first: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor] | None:
    """A small call on a CPU, where the choice is ours. None for all else, calls with a mistake among them: the look at
    the arguments is one, since it takes longer than the pass."""
    if (
        _is_compiling()
        or _choice.name != "auto"
        or not (
            isinstance(x, Tensor) and isinstance(raw_scale, Tensor) and isinstance(shift, Tensor)
        )
    ):
        return None
    dtype, shape, size = x.dtype, x.shape, x.numel()
    type_number = TYPE_NUMBER.get(dtype)
    if (
        type_number is None
        or size > FEW
        or not shape
        or raw_scale.dtype is not dtype
        or shift.dtype is not dtype
        or raw_scale.shape != shape
        or shift.shape != shape
        or not (x.is_cpu and raw_scale.is_cpu and shift.is_cpu)
        or not isinstance(scale, str)
        or scale not in SCALES
        or not 0 < clamp < math.inf
    ):
        return None
    if needs_grad(x, raw_scale, shift) or forward_mode():
        if size > _SMALL.get(scale, -1) or type_number > 1:
            return None
        if shift_first or inverse:
            return affine_coupling_reference(
                x,
                raw_scale,
                shift,
                scale=scale,
                clamp=clamp,
                shift_first=shift_first,
                inverse=inverse,
            )
        log = raw_scale if scale == "exp" else raw_scale.tanh()
        rows = log if len(shape) == 2 else log.reshape(shape[0], math.prod(shape[1:]))
        # torch is slow to differentiate addcmul.
        return x * log.exp() + shift, rows.sum(1)
    if (
        _kernel is None
        or not is_plain_call(x, raw_scale, shift)
        or not (x.is_contiguous() and raw_scale.is_contiguous() and shift.is_contiguous())
    ):
        return None
    samples = shape[0]
    elements = size // (samples or 1)
    y = torch.empty_like(x)
    logdet = torch.empty(samples, dtype=torch.float64 if type_number == 1 else torch.float32)
    _kernel(
        x.data_ptr(),
        elements,
        raw_scale.data_ptr(),
        elements,
        shift.data_ptr(),
        elements,
        y.data_ptr(),
        logdet.data_ptr(),
        type_number,
        samples,
        elements,
        SCALES[scale],
        clamp,
        bool(shift_first) != bool(inverse),
        bool(inverse),
        torch.get_num_threads(),
    )
    return y, logdet


def affine_coupling(
    x: Tensor,
    raw_scale: Tensor,
    shift: Tensor,
    *,
    scale: str = "exp",
    clamp: float = 2.0,
    shift_first: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """x * S + shift, or its inverse, and the log-determinant, in one pass.

    Args:
        x: (N, ...) float32, float64, bfloat16 or float16, of any layout.
        raw_scale: what S is made of; of x's shape, dtype (any float under autocast) and device.
        shift: the same.
        scale: "exp", S = exp(s); "tanh", exp(tanh s); "sigmoid", sigmoid(s + 2); "softclamp",
            exp(clamp * 0.636 * atan(s / clamp)); "clamped_tanh", exp(clamp * tanh s).
        clamp: the bound of |log S| of softclamp and clamped_tanh; positive.
        shift_first: (x + shift) * S instead, as Glow has it.
        inverse: the x that gives this, with its own log-determinant.

    Returns:
        y, of x's shape and dtype, channels-last if x is, otherwise contiguous; and logdet (N,) in float32
        (float64 for float64), in nats.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message
            names it.
    """
    few = _small(x, raw_scale, shift, scale, clamp, shift_first, inverse)
    if few is not None:
        return few
    _check(x, raw_scale, shift, scale, clamp)
    if not raw_scale.dtype == shift.dtype == x.dtype:  # under autocast
        raw_scale, shift = raw_scale.to(x.dtype), shift.to(x.dtype)
    if forward_mode():
        return affine_coupling_reference(
            x,
            raw_scale,
            shift,
            scale=scale,
            clamp=clamp,
            shift_first=shift_first,
            inverse=inverse,
        )
    settings = (scale, float(clamp), bool(shift_first), bool(inverse))
    if needs_grad(x, raw_scale, shift):
        return apply(_AffineCoupling, x, raw_scale, shift, *settings)
    return _forward(x, raw_scale, shift, *settings)


register(
    Op(
        name="affine_coupling",
        function=affine_coupling,
        reference=affine_coupling_reference,
        kernels=(_forward, _backward),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=1,
        # Scales up to e^4 are known to about 3 ulp.
        epsilon={
            torch.float32: 3e-6,
            torch.float64: 1e-14,
            torch.bfloat16: 3e-6,
            torch.float16: 3e-6,
        },
        rows=rows,
    )
)
