"""discretized_mix_logistic: the negative log-likelihood of images under a mixture of discretised logistics.

Salimans, Karpathy, Chen & Kingma (2017), "PixelCNN++", section 2.1 and 2.2. A value x of a channel,
one of 256 in [-1, 1], has the mass

    sigma((x + 1/255 - m) / s) - sigma((x - 1/255 - m) / s)

of a logistic of mean m and scale s, where the first bin reaches down to minus infinity and the last
one up to infinity. A pixel's channels share the component of the mixture, and of three channels
the means of the later ones are shifted: m1 + c0 x0, m2 + c1 x0 + c2 x1.

    x        (N, C, ...) with C = 1 or 3, values (k / 127.5) - 1, of any layout
    params   (N, P, ...) in the layout of PixelCNN++: M logits of the mixture, then for each channel
             M means, M ln s and, for three channels, M numbers whose tanh are the coefficients
             c0, c1, c2; so P = 10 M for three channels and 3 M for one
    nll      (N,) summed over pixels and channels, in nats; float32, or float64 for float64

ln s is bounded below by -7, and has no gradient below it. The masses are exact in all tails: unlike
the published code, which takes the density in the middle of a bin where the mass is below 1e-5, so
they sum to 1. Half types are computed in float32; under autocast all is float32.

Differentiable once in x and params; a second derivative raises an error. Forward mode is served by
the reference. Kept for the backward pass: the inputs and three numbers a pixel. Deterministic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _backends
from ._common import (
    TYPE_NUMBER,
    accumulation,
    address,
    apply,
    check_float,
    forward_mode,
    fresh,
    needs_grad,
    under_autocast,
)
from ._discretized_mix_logistic_calls import bad_calls, rows, samples
from ._registry import FLOATS, Kernel, Op, register

_HALF_BIN = 1 / 255
_LEAST_LOG_SCALE = -7.0


def _planes(channels: int) -> int:
    """Parameters of a component."""
    return 10 if channels == 3 else 3


def split_parameters(params: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """logits (N, M, ...); means, log-scales and coefficients (N, C, M, ...)."""
    mixtures = params.size(1) // _planes(channels)
    logits, rest = params[:, :mixtures], params[:, mixtures:]
    kinds = rest.unflatten(1, (channels, -1, mixtures)).unbind(2)
    means, log_scales = kinds[:2]
    bound = torch.full_like(log_scales, _LEAST_LOG_SCALE)
    log_scales = torch.where(log_scales < _LEAST_LOG_SCALE, bound, log_scales)
    return logits, means, log_scales, torch.tanh(kinds[2]) if channels == 3 else None


def _log_scales(params: Tensor, channels: int) -> Tensor:
    mixtures = params.size(1) // _planes(channels)
    return params[:, mixtures:].unflatten(1, (channels, -1, mixtures))[:, :, 1]


def _standardised(
    value: Tensor, means: Tensor, log_scales: Tensor, c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(value - mean) / s, half a bin / s, 1 / s; value is (N, C, 1, ...)."""
    if c is not None:
        first, second = value[:, 0], value[:, 1]
        shifts = (torch.zeros_like(c[:, 0]), c[:, 0] * first, c[:, 1] * first + c[:, 2] * second)
        means = means + torch.stack(shifts, 1)
    inverse = torch.exp(-log_scales)
    return (value - means) * inverse, _HALF_BIN * inverse, inverse


def _log_masses(value: Tensor, middle: Tensor, half: Tensor, log_scales: Tensor) -> Tensor:
    below, above = F.logsigmoid(middle + half), F.logsigmoid(half - middle)
    # ln(1 - exp(-2 half)), where half may be too small for its type and ln(2 half) is not.
    double = 2 * half.clamp(min=torch.finfo(half.dtype).tiny)
    factor = torch.log(-torch.expm1(-double) / double)
    inner = below + above + math.log(2 * _HALF_BIN) - log_scales + factor
    return torch.where(value < -0.999, below, torch.where(value > 0.999, above, inner))


def _sums_formula(x: Tensor, params: Tensor) -> Tensor:
    """(N, 3, ...): for each pixel ln sum exp of the logits; and of logits plus log-masses a number near the largest,
    and the sum of their exp over that one's. The gradients are shares of this sum, of which a logarithm far from
    zero has no digits."""
    dtype = accumulation(x.dtype)
    value, params = x.to(dtype)[:, :, None], params.to(dtype)
    logits, means, log_scales, c = split_parameters(params, x.size(1))
    middle, half, _ = _standardised(value, means, log_scales, c)
    mass = _log_masses(value, middle, half, log_scales).sum(1)
    most = (logits + mass).detach().amax(1)
    most = torch.where(most.abs() == math.inf, 0, most)
    return torch.stack((logits.logsumexp(1), most, (logits + mass - most[:, None]).exp().sum(1)), 1)


def _total(sums: Tensor) -> Tensor:
    return (sums[:, 0] - sums[:, 1] - sums[:, 2].log())[..., None].flatten(1).sum(1)


def discretized_mix_logistic_reference(x: Tensor, params: Tensor) -> Tensor:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    sums = _sums_formula(x, params)
    return _total(sums)


def _forward_reference(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    sums = _sums_formula(x, params)
    return _total(sums), sums


def _backward_reference(
    dnll: Tensor, x: Tensor, params: Tensor, sums: Tensor, want_x: bool
) -> tuple[Tensor, Tensor]:
    dtype = accumulation(x.dtype)
    value, wide = x.to(dtype)[:, :, None], params.to(dtype)
    logits, means, log_scales, c = split_parameters(wide, x.size(1))
    middle, half, inverse = _standardised(value, means, log_scales, c)
    low, high = value < -0.999, value > 0.999
    above = torch.sigmoid(-middle - half).masked_fill(high, 0)
    below = torch.sigmoid(middle - half).masked_fill(low, 0)
    double = 2 * half.clamp(min=torch.finfo(dtype).tiny)
    width = (double / torch.expm1(double)).masked_fill(low | high, 0)
    g = dnll.reshape(-1, *[1] * (logits.dim() - 1))
    mass = _log_masses(value, middle, half, log_scales).sum(1)
    posterior = g * torch.exp(logits + mass - sums[:, 1:2]) / sums[:, 2:]
    prior = g * torch.exp(logits - sums[:, :1])
    of_mass = -posterior[:, None]
    dmeans = -of_mass * (above - below) * inverse
    dscales = -of_mass * (middle * (above - below) + half * (above + below) + width)
    dscales = dscales.masked_fill(_log_scales(wide, x.size(1)) < _LEAST_LOG_SCALE, 0)
    kinds, dx = [dmeans, dscales], -dmeans
    if c is not None:
        m1, m2 = dmeans[:, 1], dmeans[:, 2]
        dx = dx + torch.stack((m1 * c[:, 0] + m2 * c[:, 1], m2 * c[:, 2], torch.zeros_like(m1)), 1)
        shifts = torch.stack((m1 * value[:, 0], m2 * value[:, 0], m2 * value[:, 1]), 1)
        kinds.append(shifts * (1 - c.square()))
    dparams = torch.cat((prior - posterior, torch.stack(kinds, 2).flatten(1, 3)), 1)
    dx = dx.sum(2).to(x.dtype).contiguous() if want_x else x.new_empty(0)
    return dx, dparams.to(x.dtype).contiguous()


def _like(x: Tensor) -> Tensor:
    return fresh(x, x.shape)


def _forward_fake(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation(x.dtype)
    rows, _, *pixels = x.shape
    return x.new_empty(rows, dtype=dtype), fresh(x, (rows, 3, *pixels), dtype)


def _backward_fake(
    dnll: Tensor, x: Tensor, params: Tensor, sums: Tensor, want_x: bool
) -> tuple[Tensor, Tensor]:
    return _like(x) if want_x else x.new_empty(0), _like(params)


def _sizes(x: Tensor, params: Tensor) -> tuple[int, ...]:
    """Samples, channels, components, pixels."""
    rows, channels, *pixels = x.shape
    return rows, channels, params.size(1) // _planes(channels), math.prod(pixels)


def _forward_cpu(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    x, params = x.contiguous(), params.contiguous()
    nll, sums = _forward_fake(x, params)
    _backends.native("_cpu").discretized_mix_logistic(
        x.data_ptr(),
        params.data_ptr(),
        nll.data_ptr(),
        sums.data_ptr(),
        TYPE_NUMBER[x.dtype],
        *_sizes(x, params),
        torch.get_num_threads(),
    )
    return nll, sums


def _backward_cpu(
    dnll: Tensor, x: Tensor, params: Tensor, sums: Tensor, want_x: bool
) -> tuple[Tensor, Tensor]:
    dnll, x, params, sums = (t.contiguous() for t in (dnll, x, params, sums))
    dx, dparams = _backward_fake(dnll, x, params, sums, want_x)
    _backends.native("_cpu").discretized_mix_logistic_backward(
        dnll.data_ptr(),
        x.data_ptr(),
        params.data_ptr(),
        sums.data_ptr(),
        address(dx if want_x else None),
        address(dparams),
        TYPE_NUMBER[x.dtype],
        *_sizes(x, params),
        torch.get_num_threads(),
    )
    return dx, dparams


def _forward_cuda(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    x, params = x.contiguous(), params.contiguous()
    sums = _forward_fake(x, params)[1]
    addresses = (x.data_ptr(), params.data_ptr(), sums.data_ptr())
    _launch("discretized_mix_logistic", x, params, *addresses)
    return _total(sums), sums


def _backward_cuda(
    dnll: Tensor, x: Tensor, params: Tensor, sums: Tensor, want_x: bool
) -> tuple[Tensor, Tensor]:
    dnll, x, params, sums = (t.contiguous() for t in (dnll, x, params, sums))
    dx, dparams = _backward_fake(dnll, x, params, sums, want_x)
    inputs = (t.data_ptr() for t in (dnll, x, params, sums))
    outputs = (address(dx if want_x else None), dparams.data_ptr())
    _launch("discretized_mix_logistic_backward", x, params, *inputs, *outputs)
    return dx, dparams


def _launch(kernel: str, x: Tensor, params: Tensor, *addresses: int | None) -> None:
    with torch.cuda.device(x.device):
        queue = torch.cuda.current_stream().cuda_stream
        run = getattr(_backends.native("_cuda"), kernel)
        run(*addresses, TYPE_NUMBER[x.dtype], *_sizes(x, params), queue)


_forward = Kernel(
    "discretized_mix_logistic(Tensor x, Tensor params) -> (Tensor nll, Tensor sums)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
)
_backward = Kernel(
    "discretized_mix_logistic_backward(Tensor dnll, Tensor x, Tensor params, Tensor sums, "
    "bool want_x) -> (Tensor dx, Tensor dparams)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
)


class _MixLogistic(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(x, params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, dnll: Tensor, _: Any) -> tuple[Any, ...]:
        want_x, want_params = ctx.needs_input_grad
        arguments = (dnll, *ctx.saved_tensors, want_x)
        run = _MixLogisticBackward.apply if needs_grad(*arguments[:3]) else _backward
        dx, dparams = run(*arguments)
        return dx if want_x else None, dparams if want_params else None


class _MixLogisticBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return _backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "discretized_mix_logistic can be differentiated once, and this asks for a second derivative; "
            "discretized_mix_logistic_reference beside it has all of them"
        )


def check_parameters(params: Tensor, channels: int) -> None:
    check_float("params", params)
    planes = _planes(channels)
    if params.dim() < 2 or params.size(1) == 0 or params.size(1) % planes:
        raise ValueError(
            f"params must have shape (N, {planes} M, ...) for images of {channels} channels, "
            f"got {tuple(params.shape)}"
        )


def _check(x: Tensor, params: Tensor) -> None:
    check_float("x", x)
    if x.dim() < 2 or x.size(1) not in (1, 3):
        raise ValueError(f"x must have shape (N, 1 or 3, ...), got {tuple(x.shape)}")
    check_parameters(params, x.size(1))
    if params.size(0) != x.size(0) or params.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"params must have x's samples and pixels, {tuple(x.shape)}, got {tuple(params.shape)}"
        )
    if params.device != x.device:
        raise ValueError(f"params must be on {x.device} like x, got {params.device}")
    if params.dtype != x.dtype:
        raise TypeError(f"params must have the dtype of x, {x.dtype}, got {params.dtype}")


def discretized_mix_logistic(x: Tensor, params: Tensor) -> Tensor:
    """The negative log-likelihood of 8-bit images under a mixture of discretised logistics.

    Args:
        x: (N, C, ...) with C = 1 or 3 and values (k / 127.5) - 1 for k from 0 to 255, of any layout;
            values in between count as the middle of a bin of the same width.
        params: (N, 10 M, ...) for three channels, (N, 3 M, ...) for one, in the layout of PixelCNN++
            (see the module); x's dtype and device.

    Returns:
        (N,) in nats, summed over pixels and channels; float32, or float64 for float64.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or dtype; the message
            names it.
        RuntimeError: a second derivative is asked for.
    """
    if isinstance(x, Tensor) and under_autocast(x.device):
        x, params = x.float(), params.float()
    _check(x, params)
    if forward_mode():
        return discretized_mix_logistic_reference(x, params)
    if needs_grad(x, params):
        return apply(_MixLogistic, x, params)[0]
    return _forward(x, params)[0]


register(
    Op(
        name="discretized_mix_logistic",
        function=discretized_mix_logistic,
        reference=discretized_mix_logistic_reference,
        kernels=(_forward, _backward),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=1,
        # Gradients by a mean are differences times 1 / s, which is up to 300 in the samples.
        epsilon={dtype: 500 * torch.finfo(accumulation(dtype)).eps for dtype in FLOATS},
        rows=rows,
    )
)
