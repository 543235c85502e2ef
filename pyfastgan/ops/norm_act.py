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
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._names import check_choice
from . import _backends
from ._common import (
    TYPE_NUMBER,
    accumulation,
    address,
    apply,
    check_float,
    dense,
    dense_like,
    forward_mode,
    needs_grad,
    output,
)
from ._recompute import note
from ._registry import BadCall, Kernel, Op, Row, Sample, T, register
from .bias_act import ACTIVATIONS

NORMS = ("batch", "instance", "group", "layer")


def _blocks(x: Tensor, groups: int) -> Tensor:
    """x in the computing dtype as (N, groups, C / groups, space), contiguous, so that sums do not
    depend on its layout. batch and affine have a group a channel."""
    n, c, *space = x.shape
    blocks = x.contiguous().reshape(n, groups, c // groups, math.prod(space))
    return blocks.to(accumulation(x.dtype))


def _of_channels(w: Tensor | None, groups: int, default: float) -> Tensor | float:
    """A (C,) tensor so that it multiplies such blocks."""
    return default if w is None else w.reshape(1, groups, -1 if w.numel() else 0, 1)


def _mean(x: Tensor, norm: str) -> Tensor:
    """E of the formulas, over what shares a statistic, 0 of nothing; affine has none."""
    if norm == "affine":
        return x.new_zeros(())
    over = (0, 3) if norm == "batch" else (2, 3)
    return x.mean(over, keepdim=True) if x.numel() else x.sum(over, keepdim=True)


def _definition(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    groups: int,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y in x's dtype, mean and var; for affine act(weight * x + bias) and no statistics."""
    blocks = _blocks(x, groups)
    mean = _mean(blocks, norm)
    # Far from zero a sum's rounding shifts the mean by more than its own: once more, about it.
    mean = mean + _mean(blocks - mean, norm)
    var = _mean((blocks - mean).square(), norm)
    z = blocks if norm == "affine" else (blocks - mean) * torch.rsqrt(var + eps)
    z = z * _of_channels(weight, groups, 1.0) + _of_channels(bias, groups, 0.0)
    y = ACTIVATIONS[act].value(z, slope).reshape(x.shape).to(x.dtype)
    if norm == "affine":
        return y, blocks.new_empty(0), blocks.new_empty(0)
    shape = _statistics_shape(x, norm, groups)
    return y, mean.reshape(shape), var.reshape(shape)


def _statistics_shape(x: Tensor, norm: str, groups: int) -> tuple[int, ...]:
    return {"batch": (x.size(1),), "group": (x.size(0), groups), "affine": (0,)}[norm]


def _forward_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, var = _definition(x, weight, bias, *settings)
    return _new_like(y, dense(x)), mean, var


def _new_like(y: Tensor, like: Tensor) -> Tensor:
    """y laid out as `like`, in memory of its own."""
    return torch.empty_like(like).copy_(y)


def _recomputed(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dy, xhat, r, weight and z as blocks."""
    dy, x = _blocks(dy, groups), _blocks(x, groups)
    if norm == "affine":
        xhat, r = x, x.new_ones(())
    else:
        shape = (1, groups, 1, 1) if norm == "batch" else (x.size(0), groups, 1, 1)
        r = torch.rsqrt(var + eps).reshape(shape)
        xhat = (x - mean.reshape(shape)) * r
    w = x.new_ones(()) if weight is None else _of_channels(weight, groups, 1.0)
    assert isinstance(w, Tensor)
    return dy, xhat, r, w, xhat * w + _of_channels(bias, groups, 0.0)


def _project(u: Tensor, xhat: Tensor, norm: str) -> Tensor:
    """P of the formulas."""
    return u - _mean(u, norm) - xhat * _mean(u * xhat, norm)


def _backward_reference(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    groups: int,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    d, xhat, r, w, z = _recomputed(dy, x, mean, var, weight, bias, norm, groups, eps)
    dz = d * ACTIVATIONS[act].slope(z, slope)
    dx = (r * _project(w * dz, xhat, norm)).reshape(x.shape)
    return (
        _new_like(dx, dense(x)),
        (dz * xhat).sum((0, 3)).flatten(),
        dz.sum((0, 3)).flatten(),
    )


def _backward_backward_reference(
    ddx: Tensor,
    ddweight: Tensor,
    ddbias: Tensor,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    groups: int,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = ACTIVATIONS[act]
    d, xhat, r, w, z = _recomputed(dy, x, mean, var, weight, bias, norm, groups, eps)
    v = _blocks(ddx, groups)
    p, q = (_of_channels(t, groups, 0.0) for t in (ddweight, ddbias))
    first = a.slope(z, slope)
    dz = d * first
    u = w * dz
    h = r * _project(v, xhat, norm)
    t = w * h + p * xhat + q
    s = torch.zeros_like(z) if a.curvature is None else d * a.curvature(z, slope) * t
    uv, uxhat, vxhat = (_mean(m, norm) for m in (u * v, u * xhat, v * xhat))
    spread = uv - _mean(u, norm) * _mean(v, norm) - uxhat * vxhat
    grad_x = r * _project(w * s + p * dz - r * (vxhat * u + uxhat * v), xhat, norm)
    grad_x = grad_x - r * r * spread * xhat if norm != "affine" else grad_x
    like = dense(x)
    return (
        _new_like((first * t).reshape(x.shape), like),
        _new_like(grad_x.reshape(x.shape), like),
        (dz * h + s * xhat).sum((0, 3)).flatten(),
        s.sum((0, 3)).flatten(),
    )


def _forward_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, groups: int, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = _statistics_shape(x, norm, groups), accumulation(x.dtype)
    mean, var = x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
    return torch.empty_like(dense(x)), mean, var


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation(x.dtype)
    return x.new_empty(x.size(1), dtype=dtype), x.new_empty(x.size(1), dtype=dtype)


def _backward_fake(dy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(dense(x)), *_sums(x)


def _backward_backward_fake(
    ddx: Tensor, ddweight: Tensor, ddbias: Tensor, dy: Tensor, x: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(dense(x)), torch.empty_like(dense(x)), *_sums(x)


_KERNEL_NORMS = ("batch", "group", "affine")  # numbered as in csrc/cpu/norm_act_loops.h


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _call_cpu(
    kernel: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    x: Tensor,
    norm: str,
    groups: int,
    eps: float,
    act: str,
    slope: float,
) -> None:
    """Runs a kernel over x, which is dense and not empty."""
    n, c, *space = x.shape
    inner = math.prod(space)
    getattr(_backends.native("_cpu"), kernel)(
        *(address(t) for t in inputs),
        *(output(t) for t in outputs),
        TYPE_NUMBER[x.dtype],
        n,
        c,
        inner,
        groups,
        _KERNEL_NORMS.index(norm),
        inner == 1 or not x.is_contiguous(),
        eps,
        ACTIVATIONS[act].number,
        slope,
        torch.get_num_threads(),
    )


def _forward_cpu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    y, mean, var = _forward_fake(x, weight, bias, *settings)
    if x.numel() == 0:
        return y, mean.zero_(), var.zero_()
    weight, bias = _contiguous(weight, bias)
    _call_cpu("norm_act", (x, weight, bias), (y, mean, var), x, *settings)
    return y, mean, var


def _backward_cpu(dy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    dx, dweight, dbias = _backward_fake(dy, x)
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_()
    inputs = (dense_like(dy, x), x, *_contiguous(*arguments[:4]))
    outputs = dx, dweight, dbias
    _call_cpu("norm_act_backward", inputs, outputs, x, *arguments[4:])
    return outputs


def _backward_backward_cpu(
    ddx: Tensor, ddweight: Tensor, ddbias: Tensor, dy: Tensor, x: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = dense(x)
    grad_dy, grad_x, grad_weight, grad_bias = _backward_backward_fake(ddx, ddweight, ddbias, dy, x)
    if x.numel() == 0:
        return grad_dy, grad_x, grad_weight.zero_(), grad_bias.zero_()
    vectors = _contiguous(ddweight, ddbias)
    inputs = (dense_like(ddx, x), *vectors, dense_like(dy, x), x, *_contiguous(*arguments[:4]))
    outputs = (grad_dy, grad_x, grad_weight, grad_bias)
    _call_cpu("norm_act_backward_backward", inputs, outputs, x, *arguments[4:])
    return outputs


# weight, bias, mean and var are float32 for half types, else of x's dtype. norm is "batch" (groups = C; mean and var
# of shape (C,)), "group" (mean and var of shape (N, groups)) or "affine" (none: xhat is x).
_PARAMETERS = "Tensor? weight, Tensor? bias, str norm, int groups, float eps, str act, float slope"

_forward = Kernel(
    f"norm_act(Tensor x, {_PARAMETERS}) -> (Tensor y, Tensor mean, Tensor var)",
    reference=_forward_reference,
    fake=_forward_fake,
    cpu=_forward_cpu,
    triton="norm_act:norm_act",
)
_backward = Kernel(
    f"norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, {_PARAMETERS}) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    triton="norm_act:norm_act_backward",
)
_backward_backward = Kernel(
    "norm_act_backward_backward(Tensor ddx, Tensor ddweight, Tensor ddbias, Tensor dy, Tensor x, Tensor mean, "
    f"Tensor var, {_PARAMETERS}) -> (Tensor grad_dy, Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    reference=_backward_backward_reference,
    fake=_backward_backward_fake,
    cpu=_backward_backward_cpu,
    triton="norm_act:norm_act_backward_backward",
)


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


def _parts(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    groups: int | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
) -> tuple[Tensor | None, Tensor | None, str, int]:
    """weight, bias, norm and groups as the kernels take them."""
    dtype = accumulation(x.dtype)
    weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
    channels = x.size(1)
    if running_mean is not None and running_var is not None and not training:
        scale = torch.rsqrt(running_var.to(dtype) + eps)
        scale = scale if weight is None else scale * weight
        shift = -running_mean.to(dtype) * scale
        return scale, shift if bias is None else shift + bias, "affine", channels
    if norm == "batch":
        return weight, bias, "batch", channels
    groups = {"instance": channels, "layer": 1}.get(norm, groups)
    assert groups is not None
    return weight, bias, "group", groups


def _update(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    count: int,
) -> None:
    """Moves the running statistics; `count` values made each mean, and the variance that is
    remembered is the unbiased one."""
    with torch.no_grad():
        if mean.dim() == 2:
            mean, var = mean.mean(0), var.mean(0)
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))


def _count(x: Tensor, norm: str, groups: int | None) -> int:
    """How many values share a mean."""
    n, c, *space = x.shape
    along = {"batch": n, "instance": 1, "layer": c}.get(norm)
    return math.prod(space) * (c // (groups or 1) if along is None else along)


def norm_act_reference(
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
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    parts = _parts(x, weight, bias, norm, groups, running_mean, running_var, training, eps)
    y, mean, var = _definition(x, *parts, eps, act, slope)
    if running_mean is not None and running_var is not None and training and x.numel():
        _update(running_mean, running_var, mean, var, momentum, _count(x, norm, groups))
    return y


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


def _is_small(x: Tensor, norm: str, training: bool) -> bool:
    """Whether torch's own operations serve, where the choice is ours."""
    return (
        norm == "batch"
        and training
        and 0 < x.numel() <= (_SMALL if x.is_contiguous() else _SMALL_LAST)
        and x.device.type == "cpu"
        and _backends.choice.name == "auto"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
    )


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
    if _is_small(x, norm, training):
        z = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
        return ACTIVATIONS[act].value(z, slope)
    parts = _parts(x, weight, bias, norm, groups, running_mean, running_var, training, eps)
    arguments = (x, *parts, float(eps), act, float(slope))
    needed = needs_grad(x, parts[0], parts[1])
    y, mean, var = apply(_NormAct, *arguments) if needed else _forward(*arguments)
    if needed:
        note(y, _first, *arguments)
    if running_mean is not None and running_var is not None and training and x.numel():
        _update(running_mean, running_var, mean, var, momentum, _count(x, norm, groups))
    return y


def _samples() -> tuple[Sample, ...]:
    def sample(label: str, shape: tuple[int, ...], last: bool = False, **kwargs: Any) -> Sample:
        weight, bias = T((shape[1],), map=lambda t: 1 + 0.2 * t), T((shape[1],))
        return Sample(label, (T(shape, channels_last=last), weight, bias), kwargs)

    running: dict[str, Any] = {
        "running_mean": T((5,)),
        "running_var": T((5,), map=lambda t: 0.5 + t.square()),
        "training": False,
    }
    return (
        sample("batch", (4, 3, 3, 3)),
        sample("batch, channels last", (3, 20, 5, 4), True, act="silu"),
        sample("batch, running", (3, 5, 2, 3), act="gelu", **running),
        sample("batch, running, channels last", (3, 5, 3, 7), True, act="relu", **running),
        sample("instance", (2, 3, 4, 5), norm="instance", act="tanh"),
        sample("group", (2, 6, 3, 3), norm="group", groups=2, act="softplus"),
        sample("group, channels last", (3, 24, 2, 3), True, norm="group", groups=3),
        sample("layer of points", (5, 19), norm="layer", act="sigmoid"),
        Sample("no weight", (T((2, 4, 33), scale=3.0),), {"norm": "layer", "act": "linear"}),
        sample("no samples", (0, 4, 2, 2)),
        sample("large", (5, 3, 80, 70), act="relu"),
        sample("large, channels last", (5, 3, 80, 70), True),
    )


def _bad_calls() -> tuple[BadCall, ...]:
    x, w = torch.zeros(2, 6, 4), torch.zeros(6)
    running = {"running_mean": w, "running_var": w}
    return (
        BadCall("integers", (torch.zeros(2, 3, dtype=torch.int64),), {}, TypeError, "x must be float32"),
        BadCall("no channels", (torch.zeros(3),), {}, ValueError, r"x must have shape \(N, C\)"),
        BadCall("weight of another width", (x, torch.zeros(4)), {}, ValueError, r"weight must have shape \(6,\)"),
        BadCall("bias of another width", (x, w, torch.zeros(6, 1)), {}, ValueError, r"bias must have shape \(6,\)"),
        BadCall("mixed dtypes", (x, w.double()), {}, TypeError, "weight must have the dtype of x"),
        BadCall("mixed devices", (x, w.to("meta")), {}, ValueError, "weight must be on cpu"),
        BadCall("unknown norm", (x,), {"norm": "spectral"}, ValueError, "norm must be one of"),
        BadCall("unknown activation", (x,), {"act": "leakyrelu"}, ValueError, "did you mean 'leaky_relu'"),
        BadCall("groups that do not divide", (x,), {"norm": "group", "groups": 4}, ValueError,
                "groups must be a positive integer that divides the 6 channels"),
        BadCall("no groups", (x,), {"norm": "group"}, ValueError, "groups must be a positive integer"),
        BadCall("groups of no group norm", (x,), {"groups": 2}, ValueError, "groups belongs to norm='group'"),
        BadCall("one running statistic", (x,), {"running_mean": w}, ValueError, "running_var is missing"),
        BadCall("running statistics of layer norm", (x,), {"norm": "layer", **running}, ValueError,
                "running_mean belongs to"),
        BadCall("running statistics of another width", (x,), {"running_mean": w, "running_var": torch.ones(5)},
                ValueError, r"running_var must have shape \(6,\)"),
        BadCall("no running statistics", (x,), {"training": False}, ValueError, "running_mean and running_var"),
        BadCall("one value a channel", (torch.zeros(1, 6),), {}, ValueError, "x must have more than one value"),
        BadCall("one value an instance", (torch.zeros(4, 6, 1),), {"norm": "instance"}, ValueError,
                "x must have more than one value"),
        BadCall("momentum", (x,), {"momentum": 1.5}, ValueError, "momentum must be between 0 and 1"),
        BadCall("negative eps", (x,), {"eps": -1.0}, ValueError, "eps must be finite and at least 0"),
        BadCall("negative slope", (x,), {"slope": -1.0}, ValueError, "slope must be finite and at least 0"),
    )  # fmt: skip


_EAGER_ACT: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "relu": F.relu,
    "silu": F.silu,
}
_EAGER_NORM: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
    "instance": lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    "group": lambda x, w, b: F.group_norm(x, 8, w, b),
    "layer": lambda x, w, b: F.group_norm(x, 1, w, b),
}


def _row(norm: str, act: str, shape: tuple[int, ...], layout: str, order: int) -> Row:
    def make() -> dict[str, Callable[[], Any]]:
        x, dy, ddx = (torch.randn(shape) for _ in range(3))
        w, b = torch.randn(shape[1]), torch.randn(shape[1])
        if layout == "channels last":
            x, dy, ddx = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, ddx))
        if order:
            for t in (x, w, b):
                t.requires_grad_()
        if order == 2:
            dy.requires_grad_()

        def run(f: Callable[[], Tensor]) -> Any:
            if order == 0:
                return f()
            if order == 1:
                return torch.autograd.grad(f(), (x, w, b), dy)
            (dx,) = torch.autograd.grad(f(), x, dy, create_graph=True)
            return torch.autograd.grad(dx, (dy, x, w), ddx)

        groups = 8 if norm == "group" else None
        return {
            "ours": lambda: run(lambda: norm_act(x, w, b, norm=norm, groups=groups, act=act)),
            "eager": lambda: run(lambda: _EAGER_ACT[act](_EAGER_NORM[norm](x, w, b))),
        }

    name = ("fwd", "fwd+bwd", "fwd+bwd+double bwd")[order]
    moves = (2, 2 + 3, 2 + 3 + 5)[order]
    return Row(
        f"norm_act {norm} {act} {name}",
        f"{','.join(map(str, shape))} {layout}",
        make,
        bytes=moves * 4 * math.prod(shape),
    )


def _rows() -> Sequence[Row]:
    image = (64, 64, 32, 32)
    return [
        *(_row(norm, "leaky_relu", image, "contiguous", 2) for norm in NORMS),
        _row("batch", "leaky_relu", image, "channels last", 2),
        *(
            _row("batch", "leaky_relu", image, layout, 1)
            for layout in ("contiguous", "channels last")
        ),
        _row("batch", "relu", image, "contiguous", 1),
        _row("group", "silu", image, "contiguous", 1),
        _row("instance", "relu", image, "contiguous", 1),
        _row("batch", "relu", (64, 32, 8, 8), "contiguous", 1),
    ]


register(
    Op(
        name="norm_act",
        function=norm_act,
        reference=norm_act_reference,
        kernels=(_forward, _backward, _backward_backward),
        samples=_samples(),
        bad_calls=_bad_calls(),
        orders=2,
        epsilon={
            torch.float32: 3e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 3e-6,
            torch.float16: 3e-6,
        },
        rows=_rows,
    )
)
