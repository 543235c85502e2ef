"""bias_act in plain PyTorch: the activations with their derivatives, masks, and the formulas of the three passes.

`bias_act.py` says what the arguments are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import dense, dense_like


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
    # NaN is not bound, as in `_bound`.
    return first if clamp is None else first * ~(y.abs() >= clamp)


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
        v = v * ~((a.value(biased, slope) * gain).abs() >= clamp)
    grad_dy, grad_x = v * a.slope(biased, slope), v * dy * a.curvature(biased, slope)
    return (
        dense_like(grad_dy.to(like.dtype), like),
        dense_like(grad_x.to(like.dtype), like),
        _channel_sums(grad_x, want_bias).to(like.dtype),
    )
