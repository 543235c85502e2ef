"""bias_act: y = clamp(gain * act(x + bias), -c, c) in one pass, with its first and second derivatives.

    x      (N, C, ...) of any layout; without a bias any shape
    bias   (C,) or None
    act    linear, relu, leaky_relu (negative slope `slope`), tanh, sigmoid, silu, gelu (the exact
           one), softplus
    gain   multiplies the activation
    clamp  bounds the magnitude of the result, if given

Differentiable twice in x and bias (any number of times for linear, relu and leaky_relu), also with
`torch.func` and in forward mode, which the reference serves. Where the clamp binds the derivative
is zero; at a kink it is torch's: 0 for relu and `slope` for leaky_relu.

On a CPU small tensors (up to 2^18 elements for linear, relu, leaky_relu and silu, 2^20 for gelu, 2^17 for sigmoid,
2^13 for tanh and softplus; in half types 2^14, 2^17 for sigmoid, 2^16 for silu, 2^23 for gelu) are left to torch's own
operations, which round a half type after each of them, unless a backend is asked for by name: there a call that is
recorded for a gradient costs more than a pass, and torch's gelu costs less than ours. Where no gradient is asked for,
the kernel, called past all else, serves them too, but for linear and gelu.

Kept for the backward pass: for linear, relu and leaky_relu the output (the next layer keeps it
anyway), or on a CPU one bit an element, which the backward pass reads sooner; for the others x and
bias.

With the mask, forward, backward and backward of the backward move two tensors each and take as long as copying these
bytes does. At 64,64,32,32 on two AVX-512 cores that is a third of a call: the rest is new memory for the outputs.

The bias gradient is accumulated in float32 (float64 for float64) in a fixed order. Under
autocast the bias is cast to x's dtype, as torch does for a convolution's; otherwise the two must
agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling as _is_compiling

from .._names import check_choice
from . import _backends
from ._backends import choice as _choice
from ._bias_act_calls import bad_calls, rows, samples
from ._bias_act_formulas import ACTIVATIONS, bias_act_reference
from ._bias_act_kernels import _backward, _backward_backward, _forward
from ._common import (
    _KEPT,
    TYPE_NUMBER,
    apply,
    check_float,
    forward_mode,
    fresh_like,
    is_channels_last,
    needs_grad,
    under_autocast,
)
from ._registry import Op, is_plain_call, register

# Whether the CPU kernels, which make and read masks in passing, are there.
_CPU_KERNELS = _backends.missing("cpu") is None


def _keeps_mask(x: Tensor, channelwise: bool, act: str, clamp: float | None) -> bool:
    """Whether the forward pass keeps a bit an element: a row of the kernel must begin and end with
    a byte."""
    if not (_CPU_KERNELS and x.device.type == "cpu" and clamp is None) or act == "linear":
        return False
    if not ACTIVATIONS[act].piecewise_linear:
        return False
    if not channelwise:
        return True
    if x.dim() == 2 or (not x.is_contiguous() and is_channels_last(x)):
        return x.size(1) % 8 == 0
    return x.numel() % (8 * x.size(0) * x.size(1) or 1) == 0


# On a CPU, up to this many elements torch's own two or three calls are sooner back than one of ours that may have to
# be differentiated: the data is in a cache, and calling is what costs.
_SMALL_FLOAT = dict.fromkeys(ACTIVATIONS, 2**18) | {
    "tanh": 2**13,
    "sigmoid": 2**17,
    "softplus": 2**13,
    "gelu": 2**20,
}
_SMALL_HALF = dict.fromkeys(ACTIVATIONS, 2**14) | {"sigmoid": 2**17, "silu": 2**16, "gelu": 2**23}
# By type and activation: that, and the numbers that the kernel has for the two.
_SMALL = {
    (dtype, act): (
        (_SMALL_FLOAT if dtype.itemsize > 2 else _SMALL_HALF)[act],
        (type_number, a.number),
    )
    for dtype, type_number in TYPE_NUMBER.items()
    for act, a in ACTIVATIONS.items()
}
_kernel = _backends.cpu_kernel("bias_act")
# What torch is sooner back with all the same: one sum, and a gelu that costs less than ours.
_ONE_PASS = ("linear", "gelu")
# torch's function, and the one that writes over its argument.
_TORCH: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "relu": (torch.relu, torch.relu_),
    "leaky_relu": (torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_),
    "tanh": (torch.tanh, torch.tanh_),
    "sigmoid": (torch.sigmoid, torch.sigmoid_),
    "silu": (torch._C._nn.silu, torch._C._nn.silu_),
    "gelu": (F.gelu, F.gelu),
    "softplus": (F.softplus, F.softplus),
}


def _small(x: Tensor, bias: Tensor | None, act: str, slope: float) -> Tensor | None:
    """A small call on a CPU, where the choice is ours: by the kernel, past all that its calls usually go through, where
    no gradient is asked for, or by torch's own operations. None for all else, calls with a mistake among them. The look
    at the arguments takes 1 us, half of one of these operations: nothing is asked twice."""
    if (
        _is_compiling()
        or _choice.name != "auto"
        or not (
            isinstance(x, Tensor) and isinstance(act, str) and x.is_cpu and 0 <= slope < math.inf
        )
    ):
        return None
    dtype = x.dtype
    known = _SMALL.get((dtype, act))
    if known is None:
        return None
    most, numbers = known
    shape, size = x.shape, x.numel()
    dims = len(shape)
    if size > most:
        return None
    recorded = x.requires_grad
    if bias is not None:
        if (
            dims < 2
            or not isinstance(bias, Tensor)
            or bias.dtype is not dtype
            or bias.dim() != 1
            or bias.numel() != shape[1]
            or not bias.is_cpu
        ):
            return None
        recorded = recorded or bias.requires_grad
    # Whether nothing but the result is asked for.
    alone = not (recorded and torch.is_grad_enabled()) and not forward_mode()
    if (
        alone
        and act not in _ONE_PASS
        and _kernel is not None
        and is_plain_call(x, bias)
        and x.is_contiguous()
    ):
        y = torch.empty_like(x) if size * dtype.itemsize < _KEPT else fresh_like(x)
        outer, channels, inner = 1, 1, size
        place = None
        if bias is not None:
            bias = bias.contiguous()
            place = bias.data_ptr()
            outer, channels = shape[0], shape[1]
            inner = size // (outer * channels or 1)
        _kernel(
            x.data_ptr(),
            place,
            y.data_ptr(),
            None,
            numbers[0],
            outer,
            channels,
            inner,
            numbers[1],
            slope,
            1.0,
            math.nan,
            torch.get_num_threads(),
        )
        return y
    if bias is not None:
        if dims == 4:
            x = x + bias.view(1, -1, 1, 1)
        else:
            x = x + (bias if dims == 2 else bias.view(-1, *[1] * (dims - 2)))
    if act == "linear":
        return x.clone() if bias is None else x
    function = _TORCH[act][alone and bias is not None]  # the sum may be written over
    return function(x, slope) if act == "leaky_relu" else function(x)


class _BiasAct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
        return _forward(x, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, bias, *settings, want_mask = inputs
        y, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)  # or the mask would get a gradient of zeros
        if ACTIVATIONS[settings[0]].piecewise_linear:
            ctx.save_for_backward(mask if want_mask else y, None)
        else:
            ctx.save_for_backward(x, bias)
        # y lies in memory as x does, or is contiguous.
        ctx.settings = (*settings, not x.is_contiguous() and is_channels_last(x))

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Any, ...]:
        at, bias = ctx.saved_tensors
        if dy is None:  # nothing that is asked for depends on y
            return None, None, *(None,) * len(ctx.settings)
        want_bias = ctx.needs_input_grad[1]
        dx, dbias = differentiable_backward(dy, None, at, bias, *ctx.settings, want_bias)
        return dx, dbias if want_bias else None, *(None,) * len(ctx.settings)


def differentiable_backward(
    dy: Tensor, shift: Tensor | None, at: Tensor, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    if needs_grad(dy, shift, at, bias):
        return apply(_BiasActBackward, dy, shift, at, bias, *settings)
    return _backward(dy, shift, at, bias, *settings)


class _BiasActBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        dy: Tensor, shift: Tensor | None, at: Tensor, bias: Tensor | None, *settings: Any
    ) -> tuple[Tensor, Tensor]:
        return _backward(dy, shift, at, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        dy, shift, at, bias, *ctx.settings = inputs
        # A piecewise-linear activation's second derivative is zero, so dy is not needed again.
        linear = ACTIVATIONS[ctx.settings[0]].piecewise_linear
        ctx.save_for_backward(None if linear else dy, at, bias)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor, ddbias: Tensor) -> tuple[Any, ...]:
        dy, at, bias = ctx.saved_tensors
        *settings, channels_last, had_bias = ctx.settings
        shift = ddbias if had_bias else None
        want_shift, want_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        none = (None,) * len(ctx.settings)
        if dy is None:
            # None, not zeros, for `at`: zeros would drag a dead pass through the forward graph.
            grad_dy, grad_shift = differentiable_backward(
                ddx, shift, at, bias, *settings, channels_last, want_shift
            )
            return grad_dy, grad_shift if want_shift else None, None, None, *none
        arguments = (ddx, shift, dy, at, bias, *settings, want_bias)
        if needs_grad(ddx, ddbias, dy, at, bias):
            grad_dy, grad_x, grad_bias = apply(_BiasActBackwardBackward, *arguments)
        else:
            grad_dy, grad_x, grad_bias = _backward_backward(*arguments)
        return grad_dy, None, grad_x, grad_bias if want_bias else None, *none


class _BiasActBackwardBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _backward_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.act = inputs[5]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            f"bias_act with act={ctx.act!r} can be differentiated twice, and this asks for a third derivative; "
            "pyfastgan.ops.bias_act.bias_act_reference has all of them"
        )


def _check(
    x: Tensor, bias: Tensor | None, act: str, slope: float, gain: float, clamp: float | None
) -> None:
    check_float("x", x)
    check_choice("act", act, ACTIVATIONS)
    if bias is not None:
        check_float("bias", bias)
        if x.dim() < 2:
            raise ValueError(
                f"x must have a channel dimension 1 for a bias, got shape {tuple(x.shape)}"
            )
        if bias.dim() != 1 or bias.size(0) != x.size(1):
            raise ValueError(
                f"bias must have shape ({x.size(1)},), one value for each channel of x {tuple(x.shape)}, "
                f"got {tuple(bias.shape)}"
            )
        if bias.device != x.device:
            raise ValueError(f"bias must be on {x.device} like x, got {bias.device}")
        if bias.dtype != x.dtype and not under_autocast(x.device):
            raise TypeError(f"bias must have the dtype of x, {x.dtype}, got {bias.dtype}")
    if not (math.isfinite(slope) and slope >= 0):
        raise ValueError(f"slope must be finite and at least 0, got {slope}")
    if not math.isfinite(gain):
        raise ValueError(f"gain must be finite, got {gain}")
    if clamp is not None and not (math.isfinite(clamp) and clamp > 0):
        raise ValueError(f"clamp must be finite and positive, or None, got {clamp}")


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    act: str = "leaky_relu",
    *,
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * act(x + bias), -clamp, clamp) in one pass, differentiable twice.

    Args:
        x: (N, C, ...) float32, float64, bfloat16 or float16, of any layout; any shape if there is
            no bias.
        bias: (C,) of x's dtype (any of them under autocast) and device, or None.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's for negative inputs, at least 0.
        gain: factor after the activation.
        clamp: bound of the result's magnitude, or None.

    Returns:
        A tensor of x's shape and dtype; channels-last if x is, otherwise contiguous.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message
            names it.
        RuntimeError: a third derivative of a smooth activation is asked for.
    """
    if gain == 1.0 and clamp is None:
        y = _small(x, bias, act, slope)
        if y is not None:
            return y
    _check(x, bias, act, slope, gain, clamp)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    if forward_mode():
        return bias_act_reference(x, bias, act, slope=slope, gain=gain, clamp=clamp)
    settings = (act, float(slope), float(gain), None if clamp is None else float(clamp))
    if needs_grad(x, bias):
        want_mask = _keeps_mask(x, bias is not None, act, clamp)
        return apply(_BiasAct, x, bias, *settings, want_mask)[0]
    return _forward(x, bias, *settings, False)[0]


register(
    Op(
        name="bias_act",
        function=bias_act,
        reference=bias_act_reference,
        kernels=(_forward, _backward, _backward_backward),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=2,
        # The polynomials reach about 3 ulp; the bias gradients of second order sum products of that
        # with two normal numbers, which are up to 10, and partly cancel.
        epsilon={
            torch.float32: 3e-6,
            torch.float64: 1e-14,
            torch.bfloat16: 3e-6,
            torch.float16: 3e-6,
        },
        rows=rows,
    )
)
