"""norm_act in plain PyTorch: its formulas and those of its two backward passes.

`norm_act.py` says what the arguments are and derives the derivatives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._common import accumulation, dense
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
