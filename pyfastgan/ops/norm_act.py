"""norm_act: y = act(weight * xhat + bias), xhat = (x - mean) / sqrt(var + eps), with its first and second derivatives.

    x             (N, C) or (N, C, ...) of any layout
    weight, bias  (C,) or None
    norm          what mean and var are taken over:
                    batch     N and space, for each channel (Ioffe and Szegedy 2015)
                    instance  space, for each sample and channel (Ulyanov et al. 2016)
                    group     space and the C / groups channels of a group, for each sample (Wu and He 2018)
                    layer     all channels and space of a sample: group with one group (Ba et al. 2016). For
                              (N, C) that is `nn.LayerNorm(C)`; otherwise the affine part is one number a channel
    act           those of `bias_act`

var is the mean square deviation from the mean, found without cancellation. batch and instance take running statistics
in its place with `training=False`, and then y = act(scale * x + shift) with scale and shift from (C,) tensors.

Differentiable twice in x, weight and bias (with running statistics also in those), with `torch.func` too; forward mode
is served by the reference. bfloat16 and float16 are computed in float32 and rounded once. Kept for the backward pass:
x, mean, var, weight and bias; the rest is computed again. Sums have a fixed order, so that the same call gives the
same bits on any number of threads.

On a CPU batch norm in training of small tensors (up to 2^16 elements, channels-last 2^17) is left to torch's own
operations unless a backend is asked for by name: there a call costs more than a pass.

The derivatives. With z = weight * xhat + bias, r = 1 / sqrt(var + eps), E the mean over what shares a mean, and
P u = u - E u - xhat E(u xhat), which is its own adjoint:

    dz = dy act'(z)      dx = r P(weight dz)      dweight = sum dz xhat      dbias = sum dz

For cotangents v, p, q of dx, dweight and dbias, <v, dx> + <p, dweight> + <q, dbias> = sum dz t, where

    t = weight h + p xhat + q      h = r P v

is the change of z that v, p and q make. Hence, with s = dy act''(z) t (zero for the piecewise-linear activations),
a = E(weight dz xhat) and b = E(v xhat),

    grad_dy = act'(z) t      grad_weight = sum (dz h + s xhat)      grad_bias = sum s
    grad_x = r P(weight s + p dz - r (b weight dz + a v)) - r^2 xhat (E(weight dz v) - E(weight dz) E v - a b)

The last term is what r contributes to h. Everything under E or a sum is linear in the products of {1, xhat, v} with dz,
and with dy act''(z) and {1, xhat}: one pass over x, dy and v gives all the sums, a second one all the results.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling as _is_compiling

from .._names import check_choice
from ._backends import choice as _choice
from ._common import accumulation, apply, check_float, forward_mode, needs_grad
from ._norm_act_calls import bad_calls, rows, samples
from ._norm_act_formulas import NORMS, _count, _parts, _update, norm_act_reference
from ._norm_act_kernels import _backward, _backward_backward, _forward
from ._recompute import note
from ._registry import Op, register
from .bias_act import _TORCH, ACTIVATIONS


def _first(*arguments: Any) -> Tensor:
    return _forward(*arguments)[0]


class _NormAct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(x, weight, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, *ctx.settings = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, mean, var, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        x, mean, var, weight, bias = ctx.saved_tensors
        arguments = (dy, x, mean, var, weight, bias, *ctx.settings)
        if needs_grad(dy, x, weight, bias):
            dx, dweight, dbias = apply(_NormActBackward, *arguments)
        else:
            dx, dweight, dbias = _backward(*arguments)
        return (
            dx,
            None if weight is None else dweight,
            None if bias is None else dbias,
            *(None,) * len(ctx.settings),
        )


class _NormActBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.settings = inputs[6:]

    @staticmethod
    def backward(ctx: Any, ddx: Tensor, ddweight: Tensor, ddbias: Tensor) -> tuple[Any, ...]:
        dy, x, mean, var, weight, bias = ctx.saved_tensors
        arguments = (ddx, ddweight, ddbias, dy, x, mean, var, weight, bias, *ctx.settings)
        if needs_grad(ddx, ddweight, ddbias, dy, x, weight, bias):
            grads = apply(_NormActBackwardBackward, *arguments)
        else:
            grads = _backward_backward(*arguments)
        grad_dy, grad_x, grad_weight, grad_bias = grads
        smooth = not ACTIVATIONS[ctx.settings[3]].piecewise_linear
        return (
            grad_dy,
            grad_x,
            None,
            None,
            None if weight is None else grad_weight,
            grad_bias if bias is not None and smooth else None,
            *(None,) * len(ctx.settings),
        )


class _NormActBackwardBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _backward_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "norm_act can be differentiated twice, and this asks for a third derivative; "
            "pyfastgan.ops.norm_act.norm_act_reference has all of them"
        )


def _check_parameter(argument: str, t: Tensor | None, x: Tensor) -> None:
    if t is None:
        return
    check_float(argument, t)
    if tuple(t.shape) != (x.size(1),):
        raise ValueError(
            f"{argument} must have shape ({x.size(1)},), one value for each channel of x {tuple(x.shape)}, "
            f"got {tuple(t.shape)}"
        )
    if t.device != x.device:
        raise ValueError(f"{argument} must be on {x.device} like x, got {t.device}")
    if t.dtype not in (x.dtype, accumulation(x.dtype)):
        raise TypeError(
            f"{argument} must have the dtype of x, {x.dtype}, or {accumulation(x.dtype)}, got {t.dtype}"
        )


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    groups: int | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    act: str,
    slope: float,
) -> None:
    check_float("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape (N, C) or (N, C, ...), got {tuple(x.shape)}")
    check_choice("norm", norm, NORMS)
    check_choice("act", act, ACTIVATIONS)
    if norm == "group":
        if not isinstance(groups, int) or groups < 1 or x.size(1) % groups:
            raise ValueError(
                f"groups must be a positive integer that divides the {x.size(1)} channels of x, got {groups!r}"
            )
    elif groups is not None:
        raise ValueError(f"groups belongs to norm='group', got groups={groups!r} with {norm!r}")
    parameters = {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    for argument, t in parameters.items():
        _check_parameter(argument, t, x)
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"running_mean and running_var go together, but {missing} is missing")
    if running_mean is not None and norm in ("group", "layer"):
        raise ValueError(f"running_mean belongs to batch and instance norm, got norm={norm!r}")
    if training:
        for argument in ("running_mean", "running_var"):
            t = parameters[argument]
            if t is not None and len(t) > 1 and t.stride(0) == 0:
                raise ValueError(
                    f"{argument} is written to and must have memory for each of its {len(t)} elements, "
                    f"got an expanded tensor"
                )
    if running_mean is None and not training and norm == "batch":
        raise ValueError(
            "running_mean and running_var are needed for batch norm with training=False"
        )
    own = norm in ("batch", "instance") and (running_mean is None or training)
    if own and x.numel() and _count(x, norm, groups) == 1:
        raise ValueError(
            f"x must have more than one value for each mean of {norm} norm, got shape {tuple(x.shape)}"
        )
    if not (math.isfinite(momentum) and 0 <= momentum <= 1):
        raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if not (math.isfinite(slope) and slope >= 0):
        raise ValueError(f"slope must be finite and at least 0, got {slope}")


# On a CPU, up to this many elements, contiguous and channels-last, torch's own two calls are sooner back than one of
# ours: the data is in a cache, and calling is what costs.
_SMALL, _SMALL_LAST = 2**16, 2**17


def _plain(
    x: Tensor,
    of_channels: tuple[Tensor | None, ...],
    norm: str,
    groups: int | None,
    training: bool,
    momentum: float,
    eps: float,
    act: str,
    slope: float,
) -> Tensor | None:
    """By torch's own operations what they are sooner back with, where the choice is ours; None for all else, calls
    with a mistake among them. Nothing is asked twice: each look costs a percent of a small call."""
    if (
        norm != "batch"
        or training is not True
        or groups is not None
        or _choice.name != "auto"
        or not (isinstance(x, Tensor) and x.is_cpu and isinstance(act, str) and act in ACTIVATIONS)
    ):
        return None
    dtype, shape, count = x.dtype, x.shape, x.numel()
    if (
        (dtype is not torch.float32 and dtype is not torch.float64)
        or count > _SMALL_LAST
        or len(shape) < 2
        # One value for each mean is a mistake, none is a case of its own.
        or count <= shape[1]
        or not (0 <= momentum <= 1 and 0 <= eps < math.inf and 0 <= slope < math.inf)
        or (count > _SMALL and x.is_contiguous())
    ):
        return None
    weight, bias, mean, var = of_channels
    channels = shape[1]
    for t in of_channels:
        if t is not None and not (
            isinstance(t, Tensor)
            and t.dtype is dtype
            and t.is_cpu
            and t.dim() == 1
            and t.numel() == channels
        ):
            return None
    if (mean is None) != (var is None) or _is_compiling() or forward_mode():
        return None
    # Torch writes to an expanded tensor too.
    if mean is not None and not (mean.is_contiguous() and var.is_contiguous()):  # type: ignore[union-attr]
        return None
    # The function in torch.nn.functional only checks once more.
    z = torch.batch_norm(x, weight, bias, mean, var, True, momentum, eps, False)
    if act == "linear":
        return z
    function = _TORCH[act][not z.requires_grad]
    return function(z, slope) if act == "leaky_relu" else function(z)


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str = "batch",
    groups: int | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "leaky_relu",
    slope: float = 0.2,
) -> Tensor:
    """act(weight * (x - mean) / sqrt(var + eps) + bias), differentiable twice.

    Args:
        x: (N, C) or (N, C, ...) float32, float64, bfloat16 or float16, of any layout.
        weight, bias: (C,) of x's dtype, or float32 for half types, on x's device; None for 1 and 0.
        norm: batch, instance, group or layer: what shares a mean and a variance, see the module.
        groups: how many, for "group" only; it divides C.
        running_mean, running_var: (C,), for "batch" and "instance": changed in place in training,
            where the variance is the unbiased one, and used instead of x's with
            `training=False`. Empty x changes nothing.
        training: whether x's own statistics are used. Without running statistics instance norm
            always uses them, and batch norm must.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's for negative inputs, at least 0.

    Returns:
        A tensor of x's shape and dtype; channels-last if x is, otherwise contiguous.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value, or batch or
            instance norm has one value for each mean; the message names it.
        RuntimeError: a third derivative is asked for.
    """
    of_channels = (weight, bias, running_mean, running_var)
    y = _plain(x, of_channels, norm, groups, training, momentum, eps, act, slope)
    if y is not None:
        return y
    _check(
        x,
        weight,
        bias,
        norm,
        groups,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        act,
        slope,
    )
    if forward_mode():
        return norm_act_reference(
            x,
            weight,
            bias,
            norm=norm,
            groups=groups,
            running_mean=running_mean,
            running_var=running_var,
            training=training,
            momentum=momentum,
            eps=eps,
            act=act,
            slope=slope,
        )
    parts = _parts(x, weight, bias, norm, groups, running_mean, running_var, training, eps)
    arguments = (x, *parts, float(eps), act, float(slope))
    needed = needs_grad(x, parts[0], parts[1])
    y, mean, var = apply(_NormAct, *arguments) if needed else _forward(*arguments)
    if needed:
        note(y, _first, *arguments)
    if running_mean is not None and running_var is not None and training and x.numel():
        _update(running_mean, running_var, mean, var, momentum, _count(x, norm, groups))
    return y


register(
    Op(
        name="norm_act",
        function=norm_act,
        reference=norm_act_reference,
        kernels=(_forward, _backward, _backward_backward),
        samples=samples(),
        bad_calls=bad_calls(),
        orders=2,
        epsilon={
            torch.float32: 3e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 3e-6,
            torch.float16: 3e-6,
        },
        rows=rows,
    )
)
