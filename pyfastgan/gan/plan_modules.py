"""Rules of a plan for modules, and the table of them.

What a rule is stands in `plan_arithmetic`; a rule of this file takes the module before its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.critic_plan import Unsupported
from pyfastgan.gan.linearised_maps import Bias, Look
from pyfastgan.gan.linearised_norms import FixedNorm, GroupNorm, LayerNorm
from pyfastgan.gan.plan_arithmetic import flatten
from pyfastgan.gan.plan_builder import Builder, Value, check_hooks
from pyfastgan.gan.plan_functions import (
    activate,
    adaptive_pool,
    affine,
    avg_pool,
    gelu,
    interpolate,
    pad,
    softplus,
)
from pyfastgan.nn import BiasAct, ConvBlock, ConvTransposeBlock, NormAct

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def leaf_kind(m: nn.Module) -> type | None:
    """The class of the tables that m is, with the forward of that class."""
    for kind in MODULES:
        if isinstance(m, kind) and type(m).forward is kind.forward:
            same = getattr(type(m), "_conv_forward", None) is getattr(kind, "_conv_forward", None)
            return kind if same else None
    return None


def _module_metas(m: Any) -> tuple[Tensor, Tensor | None]:
    # The shape of a parametrised weight without running the parametrisation.
    if isinstance(m, nn.Linear):
        shape: tuple[int, ...] = (m.out_features, m.in_features)
    elif m.transposed:
        shape = (m.in_channels, m.out_channels // m.groups, *m.kernel_size)
    else:
        shape = (m.out_channels, m.in_channels // m.groups, *m.kernel_size)
    dtype = next(m.parameters()).dtype
    weight = torch.empty(shape, dtype=dtype, device="meta")
    out = m.out_features if isinstance(m, nn.Linear) else m.out_channels
    return weight, None if m.bias is None else torch.empty(out, dtype=dtype, device="meta")


def _conv_module(b: Builder, name: str, m: Any, x: Value, output_size: Any = None) -> Value:
    if output_size is not None or isinstance(m.padding, str):
        raise Unsupported("chooses its padding by itself")
    conv = ([*m.stride], [*m.padding], [*m.dilation], m.transposed, [*m.output_padding], m.groups)
    weight = b.weight(m, "weight")
    assert weight is not None
    return affine(b, name, x, weight, b.weight(m, "bias"), _module_metas(m), conv)


def _linear_module(b: Builder, name: str, m: Any, x: Value) -> Value:
    weight = b.weight(m, "weight")
    assert weight is not None
    return affine(b, name, x, weight, b.weight(m, "bias"), _module_metas(m), None)


def _block(b: Builder, name: str, m: Any, x: Value) -> Value:
    for child in m.children():
        check_hooks(child, name)
    y = _conv_module(b, f"{name}.0", m.conv, x)
    if m.norm is not None:
        y = MODULES[leaf_kind(m.norm)](b, f"{name}.1", m.norm, y)
    return activate(b, name, y, m.act, slope=m.slope)


def _bias_act(b: Builder, name: str, m: Any, x: Value) -> Value:
    bias = b.weight(m, "bias")
    y = b.emit(Bias, name, (x,), x.meta, bias)
    return activate(b, name, y, m.act, slope=m.slope, gain=m.gain, clamp=m.clamp)


def _batch_norm(b: Builder, name: str, m: Any, x: Value) -> Value:
    if m.training or m.running_mean is None:
        raise Unsupported("mixes samples: batch statistics")
    statistics = b.weight(m, "running_mean"), b.weight(m, "running_var")
    more = b.weight(m, "weight"), b.weight(m, "bias"), m.eps
    return b.emit(FixedNorm, name, (x,), x.meta, *statistics, *more)


def _group_norm(b: Builder, name: str, m: Any, x: Value, groups: int) -> Value:
    if math.prod(x.meta.shape[2:]) * x.meta.size(1) == groups:
        raise Unsupported("normalises single values")
    affine = b.weight(m, "weight"), b.weight(m, "bias")
    return b.emit(GroupNorm, name, (x,), x.meta, groups, *affine, m.eps)


def _instance_norm(b: Builder, name: str, m: Any, x: Value) -> Value:
    if m.track_running_stats:
        raise Unsupported("keeps running statistics")
    return _group_norm(b, name, m, x, x.meta.size(1))


def _layer_norm(b: Builder, name: str, m: Any, x: Value) -> Value:
    if len(m.normalized_shape) >= x.meta.dim():
        raise Unsupported("mixes samples")
    affine = b.weight(m, "weight"), b.weight(m, "bias")
    return b.emit(LayerNorm, name, (x,), x.meta, tuple(m.normalized_shape), *affine, m.eps)


def _norm_act(b: Builder, name: str, m: Any, x: Value) -> Value:
    if m.norm == "batch":
        y = _batch_norm(b, name, m, x)
    elif m.running_mean is not None:
        raise Unsupported("keeps running statistics")
    else:
        groups = {"instance": x.meta.size(1), "layer": 1}.get(m.norm, m.groups)
        y = _group_norm(b, name, m, x, groups)
    return activate(b, name, y, m.act, slope=m.slope)


def _dropout(b: Builder, name: str, m: Any, x: Value) -> Value:
    if m.training and m.p > 0:
        raise Unsupported("draws a random mask")
    return x


def _embedding(b: Builder, name: str, m: Any, x: Value) -> Value:
    if m.max_norm is not None or m.scale_grad_by_freq or m.sparse:
        raise Unsupported("renormalises rows, or scales or sparsifies their gradients")
    if x.number is None or x.meta.is_floating_point():
        raise Unsupported("is not applied to labels")
    weight = b.weight(m, "weight")
    meta = torch.empty(
        *x.meta.shape,
        m.embedding_dim,
        dtype=next(m.parameters()).dtype,
        device="meta",
    )
    return b.emit(Look, name, (x,), meta, weight, -1 if m.padding_idx is None else m.padding_idx)


MODULES: dict[Any, Callable[..., Value]] = {
    **dict.fromkeys(CONVOLUTIONS, _conv_module),
    nn.Linear: _linear_module,
    ConvBlock: _block,
    ConvTransposeBlock: _block,
    BiasAct: _bias_act,
    nn.ReLU: lambda b, name, m, x: activate(b, name, x, "relu", inplace=m.inplace),
    nn.LeakyReLU: lambda b, name, m, x: activate(
        b, name, x, "leaky_relu", slope=m.negative_slope, inplace=m.inplace
    ),
    nn.SiLU: lambda b, name, m, x: activate(b, name, x, "silu", inplace=m.inplace),
    nn.GELU: lambda b, name, m, x: gelu(b, name, x, m.approximate),
    nn.Tanh: lambda b, name, m, x: activate(b, name, x, "tanh"),
    nn.Sigmoid: lambda b, name, m, x: activate(b, name, x, "sigmoid"),
    nn.Softplus: lambda b, name, m, x: softplus(b, name, x, m.beta, m.threshold),
    nn.Identity: lambda b, name, m, x: x,
    nn.Flatten: lambda b, name, m, x: flatten(b, name, x, m.start_dim, m.end_dim),
    nn.AvgPool2d: lambda b, name, m, x: avg_pool(
        b, name, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda b, name, m, x: adaptive_pool(b, name, x, m.output_size),
    nn.Upsample: lambda b, name, m, x: interpolate(
        b, name, x, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor
    ),
    nn.ZeroPad2d: lambda b, name, m, x: pad(b, name, x, m.padding),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    nn.GroupNorm: lambda b, name, m, x: _group_norm(b, name, m, x, m.num_groups),
    NormAct: _norm_act,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
}  # fmt: skip
