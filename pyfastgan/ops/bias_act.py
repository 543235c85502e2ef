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
operations, which round a half type after each of them, unless a backend is asked for by name: there a call costs more
than a pass, and torch's gelu costs less than ours.

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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling as _is_compiling

from .._names import check_choice
from . import _backends
from ._backends import choice as _choice
from ._common import (
    TYPE_NUMBER,
    address,
    apply,
    check_float,
    dense,
    dense_like,
    forward_mode,
    is_channels_last,
    needs_grad,
    outer_channels_inner,
    output,
    under_autocast,
)
from ._registry import BadCall, Kernel, Op, Row, Sample, T, register


class Activation(NamedTuple):
    """value, first and second derivative, as functions of (x, slope), and the number the kernels
    know it by."""

    number: int
    value: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]
    curvature: Callable[[Tensor, float], Tensor] | None  # None: zero everywhere

    @property
    def piecewise_linear(self) -> bool:
        return self.curvature is None


def _gelu_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(0, lambda x, s: x, lambda x, s: torch.ones_like(x), None),
    "relu": Activation(1, lambda x, s: F.relu(x), lambda x, s: (x > 0).to(x.dtype), None),
    "leaky_relu": Activation(
        2,
        lambda x, s: F.leaky_relu(x, s),
        lambda x, s: torch.where(x > 0, torch.ones_like(x), s),
        None,
    ),
    "tanh": Activation(
        3,
        lambda x, s: torch.tanh(x),
        lambda x, s: 1 - torch.tanh(x) ** 2,
        lambda x, s: -2 * torch.tanh(x) * (1 - torch.tanh(x) ** 2),
    ),
    "sigmoid": Activation(
        4,
        lambda x, s: torch.sigmoid(x),
        lambda x, s: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
        lambda x, s: torch.sigmoid(x) * (1 - torch.sigmoid(x)) * (1 - 2 * torch.sigmoid(x)),
    ),
    "silu": Activation(
        5,
        lambda x, s: F.silu(x),
        lambda x, s: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
        lambda x, s: (
            torch.sigmoid(x) * (1 - torch.sigmoid(x)) * (2 + x * (1 - 2 * torch.sigmoid(x)))
        ),
    ),
    "gelu": Activation(
        6,
        lambda x, s: F.gelu(x),
        lambda x, s: _gelu_cdf(x) + x * _gelu_density(x),
        lambda x, s: _gelu_density(x) * (2 - x * x),
    ),
    "softplus": Activation(
        7,
        lambda x, s: F.softplus(x),
        lambda x, s: torch.sigmoid(x),
        lambda x, s: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    ),
}


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.reshape(1, -1, *[1] * (x.dim() - 2))


def _bound(y: Tensor, clamp: float | None) -> Tensor:
    if clamp is None:
        return y
    if clamp > torch.finfo(y.dtype).max:  # as the dtype holds it; torch refuses such numbers
        clamp = math.inf
    # Not torch.clamp: where the bound is met exactly its derivative would be 1.
    return torch.where(y.abs() >= clamp, y.detach().clamp(-clamp, clamp), y)


def bias_act_reference(
    x: Tensor,
    bias: Tensor | None = None,
    act: str = "leaky_relu",
    *,
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    y = ACTIVATIONS[act].value(_add_bias(x, bias), slope)
    y = _bound(y if gain == 1.0 else y * gain, clamp)
    return y.clone() if y is x else y  # an op does not return its input


def _in_memory_order(x: Tensor) -> Tensor:
    """A dense tensor as one dimension, without a copy."""
    return x.as_strided((x.numel(),), (1,))


def _mask_size(elements: int) -> int:
    """Bytes of a mask: a bit an element in whole words of 64, and one word that a kernel may read
    past the end."""
    return (elements + 63) // 64 * 8 + 8


def _pack_mask(positive: Tensor) -> Tensor:
    """Bit k of the mask is element k in memory, lowest bit first."""
    bits = positive.new_zeros(_mask_size(positive.numel()) * 8, dtype=torch.uint8)
    bits[: positive.numel()] = _in_memory_order(positive)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.reshape(-1, 8) * weights).sum(1, dtype=torch.uint8)


def signs_of(mask: Tensor, like: Tensor) -> Tensor:
    """1 where a mask's bit is set and -1 elsewhere, lying in memory as `like` does."""
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = ((mask[:, None] >> shifts) & 1).flatten()[: like.numel()]
    signs = torch.empty_like(like)
    _in_memory_order(signs).copy_(bits * 2.0 - 1.0)
    return signs


def _forward_reference(
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_mask: bool,
) -> tuple[Tensor, Tensor]:
    x = dense(x)
    y = dense_like(bias_act_reference(x, bias, act, slope=slope, gain=gain, clamp=clamp), x)
    mask = x.new_empty(0, dtype=torch.uint8)
    if want_mask:
        mask = _pack_mask(dense_like(_add_bias(x, bias) > 0, x))
    return y, mask


def _computed(*tensors: Tensor | None) -> list[Any]:
    """Half types in float32, as the kernels compute them."""
    return [t.float() if t is not None and t.dtype.itemsize == 2 else t for t in tensors]


def _derivative(
    at: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    flipped: bool,
) -> Tensor:
    """d y / d x from what the forward pass kept; `flipped` if that is a sign of -x."""
    a = ACTIVATIONS[act]
    if a.piecewise_linear:
        y, first = at, a.slope(-at if flipped else at, slope)
    else:
        x = _add_bias(at, bias)
        y, first = a.value(x, slope) * gain, a.slope(x, slope)
    first = first * gain
    return first if clamp is None else first * (y.abs() < clamp)


def _channel_sums(x: Tensor, wanted: bool) -> Tensor:
    """Sums over all dimensions but the channels; empty if they are not wanted."""
    if not wanted:
        return x.new_empty(0)
    return x.sum([k for k in range(x.dim()) if k != 1])


def _cotangent(dy: Tensor, at: Tensor, channels_last: bool) -> Tensor:
    """dy as it must lie in memory: like x or y if one was kept, else in the order that the mask was
    made in."""
    if at.dtype != torch.uint8:
        return dense_like(dy, at)
    if not channels_last:
        return dy.contiguous()
    form = torch.channels_last if dy.dim() == 4 else torch.channels_last_3d
    return dy.contiguous(memory_format=form)


def _backward_reference(
    dy: Tensor,
    shift: Tensor | None,
    at: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    channels_last: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor]:
    at = dense(at)
    dy = _cotangent(dy, at, channels_last)
    if clamp is not None:
        # So that a stored y at the bound compares equal to it.
        clamp = torch.tensor(clamp, dtype=at.dtype).item()
    masked = at.dtype == torch.uint8
    dy32, shift32, at32, bias32 = _computed(dy, shift, signs_of(at, dy) if masked else at, bias)
    derivative = _derivative(at32, bias32, act, slope, gain, clamp, gain < 0 and not masked)
    dx = _add_bias(dy32, shift32) * derivative
    return dense_like(dx.to(dy.dtype), dy), _channel_sums(dx, want_bias).to(dy.dtype)


def _backward_backward_reference(
    ddx: Tensor,
    shift: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    a = ACTIVATIONS[act]
    assert a.curvature is not None
    like = dense(x)
    if clamp is not None:
        clamp = torch.tensor(clamp, dtype=x.dtype).item()
    ddx, dy = dense_like(ddx, like), dense_like(dy, like)
    ddx, shift, dy, x, bias = _computed(ddx, shift, dy, like, bias)
    biased = _add_bias(x, bias)
    v = _add_bias(ddx, shift) * gain
    if clamp is not None:
        v = v * ((a.value(biased, slope) * gain).abs() < clamp)
    grad_dy, grad_x = v * a.slope(biased, slope), v * dy * a.curvature(biased, slope)
    return (
        dense_like(grad_dy.to(like.dtype), like),
        dense_like(grad_x.to(like.dtype), like),
        _channel_sums(grad_x, want_bias).to(like.dtype),
    )


def _forward_fake(x: Tensor, bias: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(dense(x))
    return y, x.new_empty(_mask_size(y.numel()) if settings[-1] else 0, dtype=torch.uint8)


def _sums_fake(like: Tensor, want_bias: bool) -> Tensor:
    return like.new_empty(like.size(1) if want_bias else 0)


def _backward_fake(
    dy: Tensor, shift: Tensor | None, at: Tensor, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    *_, channels_last, want_bias = settings
    dx = torch.empty_like(_cotangent(dy, dense(at), channels_last))
    return dx, _sums_fake(dx, want_bias)


def _backward_backward_fake(
    ddx: Tensor, shift: Tensor | None, dy: Tensor, x: Tensor, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), torch.empty_like(x), _sums_fake(x, settings[-1])


def _launch_arguments(
    x: Tensor, channelwise: bool, act: str, slope: float, gain: float, clamp: float | None
) -> tuple[Any, ...]:
    """What every kernel takes after its pointers."""
    dims = outer_channels_inner(x) if channelwise else (1, 1, x.numel())
    return (
        TYPE_NUMBER[x.dtype],
        *dims,
        ACTIVATIONS[act].number,
        slope,
        gain,
        math.nan if clamp is None else clamp,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_mask: bool,
) -> tuple[Tensor, Tensor]:
    x, bias = dense(x), None if bias is None else bias.contiguous()
    y = torch.empty_like(x)
    mask = x.new_empty(_mask_size(x.numel()) if want_mask else 0, dtype=torch.uint8)
    _backends.native("_cpu").bias_act(
        x.data_ptr(),
        address(bias),
        output(y),
        output(mask if want_mask else None),
        *_launch_arguments(x, bias is not None, act, slope, gain, clamp),
    )
    return y, mask


def _backward_cpu(
    dy: Tensor,
    shift: Tensor | None,
    at: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    channels_last: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor]:
    at = dense(at)
    dy = _cotangent(dy, at, channels_last)
    shift, bias = (None if t is None else t.contiguous() for t in (shift, bias))
    dx, dbias = torch.empty_like(dy), _sums_fake(dy, want_bias)
    channelwise = want_bias or bias is not None or shift is not None
    masked = at.dtype == torch.uint8
    _backends.native("_cpu").bias_act_backward(
        dy.data_ptr(),
        address(shift),
        None if masked else at.data_ptr(),
        at.data_ptr() if masked else None,
        address(bias),
        output(dx),
        dbias.data_ptr() if want_bias else None,
        *_launch_arguments(dy, channelwise, act, slope, gain, clamp),
    )
    return dx, dbias


def _backward_backward_cpu(
    ddx: Tensor,
    shift: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    ddx, dy = dense_like(ddx, x), dense_like(dy, x)
    shift, bias = (None if t is None else t.contiguous() for t in (shift, bias))
    grad_dy, grad_x, grad_bias = torch.empty_like(x), torch.empty_like(x), _sums_fake(x, want_bias)
    channelwise = want_bias or bias is not None or shift is not None
    _backends.native("_cpu").bias_act_backward_backward(
        ddx.data_ptr(),
        address(shift),
        dy.data_ptr(),
        x.data_ptr(),
        address(bias),
        output(grad_dy),
        output(grad_x),
        grad_bias.data_ptr() if want_bias else None,
        *_launch_arguments(x, channelwise, act, slope, gain, clamp),
    )
    return grad_dy, grad_x, grad_bias


_SETTINGS = "str act, float slope, float gain, float? clamp"

_forward = Kernel(
    f"bias_act(Tensor x, Tensor? bias, {_SETTINGS}, bool want_mask) -> (Tensor y, Tensor mask)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    triton="bias_act:bias_act",
)
# `at` is y or the mask for the piecewise-linear activations and x for the others; `channels_last`
# is the order that a mask was made in. `shift` (C,) is added to dy: in a second backward pass,
# where dy is the cotangent of dx, it is the cotangent of the bias gradient.
_backward = Kernel(
    f"bias_act_backward(Tensor dy, Tensor? shift, Tensor at, Tensor? bias, {_SETTINGS}, "
    "bool channels_last, bool want_bias) -> (Tensor dx, Tensor dbias)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    triton="bias_act:bias_act_backward",
)
# For the smooth activations; the second derivative of the others is zero.
_backward_backward = Kernel(
    "bias_act_backward_backward(Tensor ddx, Tensor? shift, Tensor dy, Tensor x, Tensor? bias, "
    f"{_SETTINGS}, bool want_bias) -> (Tensor grad_dy, Tensor grad_x, Tensor grad_bias)",
    reference=_backward_backward_reference,
    fake=_backward_backward_fake,
    cpu=_backward_backward_cpu,
    triton="bias_act:bias_act_backward_backward",
)


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


# On a CPU, up to this many elements torch's own two or three calls are sooner back than one of ours: the data is in
# a cache, and calling is what costs.
_SMALL_FLOAT = dict.fromkeys(ACTIVATIONS, 2**18) | {
    "tanh": 2**13,
    "sigmoid": 2**17,
    "softplus": 2**13,
    "gelu": 2**20,
}
_SMALL_HALF = dict.fromkeys(ACTIVATIONS, 2**14) | {"sigmoid": 2**17, "silu": 2**16, "gelu": 2**23}
_SMALL = {
    torch.float32: _SMALL_FLOAT,
    torch.float64: _SMALL_FLOAT,
    torch.bfloat16: _SMALL_HALF,
    torch.float16: _SMALL_HALF,
}
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


def _plain(x: Tensor, bias: Tensor | None, act: str, slope: float) -> Tensor | None:
    """By torch's own operations what they are sooner back with, where the choice is ours; None for all else, calls
    with a mistake among them. It takes 1 us, half of one of these operations: nothing is asked twice."""
    if (
        _is_compiling()
        or _choice.name != "auto"
        or not (
            isinstance(x, Tensor) and isinstance(act, str) and x.is_cpu and 0 <= slope < math.inf
        )
    ):
        return None
    dtype = x.dtype
    limits = _SMALL.get(dtype)
    if limits is None or x.numel() > limits.get(act, -1):
        return None
    over = False  # whether the sum may be written over
    if bias is not None:
        shape = x.shape
        dims = len(shape)
        if (
            dims < 2
            or not isinstance(bias, Tensor)
            or bias.dtype is not dtype
            or bias.shape != shape[1:2]
            or not bias.is_cpu
        ):
            return None
        over = (
            not ((x.requires_grad or bias.requires_grad) and torch.is_grad_enabled())
            and not forward_mode()
        )
        if dims == 4:
            x = x + bias.view(-1, 1, 1)
        else:
            x = x + (bias if dims == 2 else bias.view(-1, *[1] * (dims - 2)))
    if act == "linear":
        return x.clone() if bias is None else x
    function = _TORCH[act][over]
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
        y = _plain(x, bias, act, slope)
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


def _samples() -> tuple[Sample, ...]:
    samples = []
    for act in ACTIVATIONS:
        samples += [
            Sample(f"{act}", (T((2, 5, 4, 6)), T((5,)), act)),
            Sample(
                f"{act}, channels last, gain, clamp",
                (T((2, 3, 5, 7), channels_last=True), T((3,)), act),
                {"slope": 0.1, "gain": -1.5, "clamp": 0.8},
            ),
        ]
    return (
        *samples,
        Sample("wide inputs", (T((64, 33), scale=20.0), T((33,)), "gelu")),
        Sample("points", (T((7, 17)), T((17,)), "silu"), {"gain": 2**0.5}),
        Sample("no bias, any shape", (T((3, 1, 2)), None, "tanh")),
        Sample("scalar", (T(()),)),
        Sample("one channel", (T((6, 1, 3, 3)), T((1,)), "relu")),
        Sample("many channels last", (T((2, 40, 3, 3), channels_last=True), T((40,)), "softplus")),
        Sample("volume", (T((1, 2, 3, 4, 5)), T((2,)), "sigmoid")),
        Sample("no samples", (T((0, 4, 2, 2)), T((4,)))),
        Sample("no channels", (T((2, 0, 3)), T((0,)))),
        Sample("a mask, channels last", (T((3, 24, 3, 2), channels_last=True), T((24,)), "relu")),
        Sample("a mask, negative gain", (T((2, 3, 4, 4)), T((3,))), {"gain": -2.0}),
        Sample("a mask, odd end", (T((3, 5, 7)), None, "relu")),
        # Rows of 128 elements and more have a loop of their own.
        Sample("long rows, odd end", (T((3, 4, 13, 11)), T((4,)), "silu")),
        Sample("long rows, a mask, odd end", (T((2, 3, 8, 17)), T((3,)))),
        # Outputs of 12 MiB and more are stored past the caches.
        Sample("large", (T((2, 1100, 1600)), None, "leaky_relu")),
        Sample("zero slope", (T((3, 4, 5)), T((4,))), {"slope": 0.0, "gain": 0.0}),
    )


def _bad_calls() -> tuple[BadCall, ...]:
    x, b = torch.zeros(2, 3, 4), torch.zeros(3)
    return (
        BadCall("bias of another width", (x, torch.zeros(4)), {}, ValueError, r"bias must have shape \(3,\)"),
        BadCall("bias with two dimensions", (x, torch.zeros(3, 1)), {}, ValueError, "bias must have shape"),
        BadCall("no channels for a bias", (torch.zeros(3), b), {}, ValueError, "x must have a channel dimension"),
        BadCall("integers", (torch.zeros(2, 3, dtype=torch.int64),), {}, TypeError, "x must be float32"),
        BadCall("integer bias", (x, torch.zeros(3, dtype=torch.int32)), {}, TypeError, "bias must be float32"),
        BadCall("not a tensor", ([1.0, 2.0],), {}, TypeError, "x must be a tensor, got list"),
        BadCall("mixed dtypes", (x, b.double()), {}, TypeError, "bias must have the dtype of x"),
        BadCall("mixed devices", (x, b.to("meta")), {}, ValueError, "bias must be on cpu"),
        BadCall("unknown activation", (x, b, "leakyrelu"), {}, ValueError, "did you mean 'leaky_relu'"),
        BadCall("negative slope", (x, b), {"slope": -0.1}, ValueError, "slope must be finite and at least 0"),
        BadCall("infinite slope", (x, b), {"slope": math.inf}, ValueError, "slope must be finite"),
        BadCall("NaN gain", (x, b), {"gain": math.nan}, ValueError, "gain must be finite"),
        BadCall("zero clamp", (x, b), {"clamp": 0.0}, ValueError, "clamp must be finite and positive"),
    )  # fmt: skip


def _row(act: str, shape: tuple[int, ...], layout: str, order: int) -> Row:
    eager_act: dict[str, Callable[[Tensor], Tensor]] = {
        "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
        "relu": F.relu,
        "silu": F.silu,
        "gelu": F.gelu,
    }

    def make() -> dict[str, Callable[[], Any]]:
        x, b = torch.randn(shape), torch.randn(shape[1])
        dy, ddx = torch.randn(shape), torch.randn(shape)
        if layout == "channels last":
            x, dy, ddx = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, ddx))
        if order:
            x.requires_grad_()
            b.requires_grad_()
        if order == 2:
            dy.requires_grad_()

        def run(f: Callable[[], Tensor]) -> Any:
            if order == 0:
                return f()
            if order == 1:
                return torch.autograd.grad(f(), (x, b), dy)
            dx, db = torch.autograd.grad(f(), (x, b), dy, create_graph=True)
            inputs = (dy,) if ACTIVATIONS[act].piecewise_linear else (dy, x, b)
            return torch.autograd.grad(dx, inputs, ddx)

        return {
            "ours": lambda: run(lambda: bias_act(x, b, act)),
            "eager": lambda: run(lambda: eager_act[act](_add_bias(x, b))),
        }

    smooth = not ACTIVATIONS[act].piecewise_linear
    moves = (2, 2 + 3, 2 + 3 + (5 if smooth else 3))[order]
    name = ("fwd", "fwd+bwd", "fwd+bwd+double bwd")[order]
    return Row(
        f"bias_act {act} {name}",
        f"{','.join(map(str, shape))} {layout}",
        make,
        bytes=moves * 4 * math.prod(shape),
    )


def _rows() -> Sequence[Row]:
    image = (64, 64, 32, 32)
    return [
        *(_row("leaky_relu", image, "contiguous", order) for order in (0, 1, 2)),
        _row("leaky_relu", image, "channels last", 1),
        *(_row("silu", image, "contiguous", order) for order in (0, 1, 2)),
        _row("relu", (64, 32, 8, 8), "contiguous", 1),
    ]


register(
    Op(
        name="bias_act",
        function=bias_act,
        reference=bias_act_reference,
        kernels=(_forward, _backward, _backward_backward),
        samples=_samples(),
        bad_calls=_bad_calls(),
        orders=2,
        # The polynomials reach about 3 ulp; the bias gradients of second order sum products of that
        # with two normal numbers, which are up to 10, and partly cancel.
        epsilon={
            torch.float32: 3e-6,
            torch.float64: 1e-14,
            torch.bfloat16: 3e-6,
            torch.float16: 3e-6,
        },
        rows=_rows,
    )
)
