"""Rules of a plan for activations, convolutions and resampling, and the table of all functions.

What a rule is stands in `plan_arithmetic`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfastgan.gan.critic_plan import Unsupported
from pyfastgan.gan.linearised_affine import Affine
from pyfastgan.gan.linearised_maps import Bias, Pad, Resample
from pyfastgan.gan.linearised_norms import Act
from pyfastgan.gan.plan_arithmetic import ARITHMETIC, check_in_place
from pyfastgan.gan.plan_builder import Builder, Value


def _act(act: str, slope: Callable[..., float] = lambda *a: 0.2) -> Callable[..., Value]:
    def rule(
        b: Builder,
        name: str,
        x: Value,
        negative_slope: float = 0.01,
        inplace: bool = False,
        **other: Any,
    ) -> Value:
        return activate(b, name, x, act, slope=negative_slope, inplace=inplace)

    def plain(b: Builder, name: str, x: Value, inplace: bool = False) -> Value:
        return activate(b, name, x, act, inplace=inplace)

    return rule if act == "leaky_relu" else plain


def activate(
    b: Builder,
    name: str,
    x: Value,
    act: str,
    *,
    slope: float = 0.2,
    inplace: bool = False,
    **more: Any,
) -> Value:
    if inplace:
        check_in_place(b, x)
    if slope < 0:
        raise Unsupported("has a negative slope")
    found = (
        x
        if act == "linear" and more.get("clamp") is None and more.get("gain", 1.0) == 1.0
        else b.emit(Act, name, (x,), x.meta, act, slope, more.get("gain", 1.0), more.get("clamp"))
    )
    if inplace:
        x.number = found.number
    return found


def _bias_act(
    b: Builder,
    name: str,
    x: Value,
    bias: Value | None = None,
    act: str = "leaky_relu",
    *,
    slope: float = 0.2,
    **more: Any,
) -> Value:
    if bias is not None:
        if bias.source is None:
            raise Unsupported("has a bias that depends on samples")
        x = b.emit(Bias, name, (x,), x.meta, b.source(bias.source))
    return activate(b, name, x, act, slope=slope, **more)


def gelu(b: Builder, name: str, x: Value, approximate: str = "none") -> Value:
    if approximate != "none":
        raise Unsupported("is an approximation")
    return activate(b, name, x, "gelu")


def softplus(b: Builder, name: str, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if (beta, threshold) != (1, 20):
        raise Unsupported("has a beta or threshold of its own")
    return activate(b, name, x, "softplus")


def affine(
    b: Builder,
    name: str,
    x: Value,
    weight: int,
    bias: int | None,
    metas: tuple[Tensor, Tensor | None],
    conv: tuple[Any, ...] | None,
) -> Value:
    weight_meta, bias_meta = metas
    if x.number is None:
        raise Unsupported("is applied to weights alone")
    if conv is None:
        meta = F.linear(x.meta.to(weight_meta.dtype), weight_meta, bias_meta)
    else:
        if x.meta.dim() != weight_meta.dim():
            raise Unsupported("is applied to a sample without a batch")
        meta = torch.convolution(x.meta.to(weight_meta.dtype), weight_meta, bias_meta, *conv)
    b.sample_shape(meta)
    return b.emit(Affine, name, (x,), meta, weight, bias, conv, matrix=meta.dim() == 2)


def _tuple(x: Any, n: int) -> list[int]:
    return [x] * n if isinstance(x, int) else [*x] * (n if len(x) == 1 else 1)


def _convolve(n: int, transposed: bool) -> Callable[..., Value]:
    def rule(
        b: Builder,
        name: str,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *more: Any,
        **other: Any,
    ) -> Value:
        names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        given = {"dilation": 1, "groups": 1, "output_padding": 0, **dict(zip(names, more)), **other}
        if isinstance(padding, str):
            raise Unsupported(f"has padding {padding!r}")
        if weight.source is None or (bias is not None and bias.source is None):
            raise Unsupported("has weights that depend on samples")
        conv = (
            _tuple(stride, n), _tuple(padding, n), _tuple(given["dilation"], n), transposed,
            _tuple(given["output_padding"], n), given["groups"],
        )  # fmt: skip
        numbers = b.number(weight), None if bias is None else b.number(bias)
        return affine(
            b, name, x, *numbers, (weight.meta, None if bias is None else bias.meta), conv
        )

    return rule


def _linear(b: Builder, name: str, x: Value, weight: Value, bias: Value | None = None) -> Value:
    if weight.source is None or (bias is not None and bias.source is None):
        raise Unsupported("has weights that depend on samples")
    numbers = b.number(weight), None if bias is None else b.number(bias)
    return affine(b, name, x, *numbers, (weight.meta, None if bias is None else bias.meta), None)


def avg_pool(
    b: Builder,
    name: str,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Value:
    if x.meta.dim() != 4:
        raise Unsupported("is not applied to images")
    stride = _tuple(stride, 2) if stride else _tuple(kernel_size, 2)
    arguments = (
        _tuple(kernel_size, 2),
        stride,
        _tuple(padding, 2),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    meta = torch.ops.aten.avg_pool2d(x.meta, *arguments)
    return b.emit(Resample, name, (x,), meta, b.sample_shape(x.meta), "avg_pool2d", arguments)


def adaptive_pool(b: Builder, name: str, x: Value, output_size: Any) -> Value:
    size = [s or x.meta.size(k + 2) for k, s in enumerate(_tuple(output_size, 2))]
    if x.meta.dim() != 4 or any(x.meta.size(k + 2) % s for k, s in enumerate(size)):
        raise Unsupported("has windows of several sizes")
    return avg_pool(b, name, x, [x.meta.size(k + 2) // s for k, s in enumerate(size)])


def interpolate(
    b: Builder,
    name: str,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:
    if mode not in ("nearest", "bilinear") or antialias or x.meta.dim() != 4:
        raise Unsupported(f"has mode {mode!r}, or antialiasing, or is not applied to images")
    scales: list[float | None] = [None, None]
    if size is None:
        scales = [
            float(s)
            for s in (
                scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * 2
            )
        ]
        size = [math.floor(x.meta.size(k + 2) * s) for k, s in enumerate(scales)]  # type: ignore[operator]
        if recompute_scale_factor:
            scales = [None, None]
    size = _tuple(size, 2)
    arguments = (size, *scales) if mode == "nearest" else (size, bool(align_corners), *scales)
    kind = f"upsample_{mode}2d"
    meta = x.meta.new_empty(*x.meta.shape[:2], *size)
    return b.emit(Resample, name, (x,), meta, b.sample_shape(x.meta), kind, arguments)


def pad(
    b: Builder, name: str, x: Value, pad: Any, mode: str = "constant", value: float | None = None
) -> Value:
    if mode != "constant" or len(pad) > 2 * (x.meta.dim() - 1):
        raise Unsupported(f"has mode {mode!r} or pads the batch")
    return b.emit(Pad, name, (x,), F.pad(x.meta, pad), tuple(pad), float(value or 0.0))


# By the name of the function or method; other names of the same thing below.
FUNCTIONS: dict[str, Callable[..., Value]] = {
    **ARITHMETIC,
    "bias_act": _bias_act,
    "relu": _act("relu"),
    "leaky_relu": _act("leaky_relu"),
    "silu": _act("silu"),
    "tanh": _act("tanh"),
    "sigmoid": _act("sigmoid"),
    "gelu": gelu,
    "softplus": softplus,
    **{f"conv{n}d": _convolve(n, False) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolve(n, True) for n in (1, 2, 3)},
    "linear": _linear,
    "avg_pool2d": avg_pool,
    "adaptive_avg_pool2d": adaptive_pool,
    "interpolate": interpolate,
    "pad": pad,
}
LABELS = {
    "view": "reshape",
    "concat": "cat",
    "concatenate": "cat",
    "div": "truediv",
    "multiply": "mul",
    "true_divide": "truediv",
    "radd": "add",
    "rmul": "mul",
}
