"""conv_transpose_act: y = act(norm(conv_transpose(x) + bias)), a layer of a generator.

    x               (N, K, H', W')
    weight          (K, C, kh, kw), as `torch.nn.ConvTranspose2d` has it
    bias            (C,) or None
    norm            None, or batch, instance, group or layer as `norm_act` has them, with the
                    parameters norm_weight and norm_bias (C,) and the rest of its arguments
    act             those of `bias_act`
    y               (N, C, H, W), H = (H' - 1) stride - 2 padding + kh + output_padding

The convolution is that of `edge_conv_transpose`: kernels of our own for images of few channels, a
matrix product for 1 x 1 inputs, and torch's in the middle of a network, unless `use_backend("triton")` asks for one
kernel of convolution, bias, activation and the moments of a batch norm. Without a norm, bias and
activation are one pass over its result, `bias_act`; with one they are `norm_act`.

Where no gradient is needed, a batch norm over running statistics is folded into the weight and the
bias, anew in every call, since weights are small:

    act(norm(conv(x, w) + b)) = act(conv(x, s w) + s (b - mean) + norm_bias), s = norm_weight / sqrt(var + eps)

Differentiable twice, with `torch.func` and in forward mode, like its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import check_float, forward_mode, needs_grad
from ._conv_transpose_fused import batch_normed, convolved, serves
from ._registry import FLOATS, BadCall, Op, Row, Sample, T, register
from .bias_act import bias_act, bias_act_reference
from .edge_conv import KERNELS, edge_conv_transpose
from .norm_act import norm_act, norm_act_reference


def conv_transpose_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    act: str = "relu",
    slope: float = 0.2,
    **settings: Any,
) -> Tensor:
    """The definition."""
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    if norm is None:
        return bias_act_reference(y, None, act, slope=slope)
    return norm_act_reference(
        y, norm_weight, norm_bias, norm=norm, act=act, slope=slope, **settings
    )


def convolve_act(
    convolve: Callable[[Tensor, Tensor, Tensor | None, str], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels_axis: int,
    *,
    norm: str | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    act: str,
    slope: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    eps: float = 1e-5,
    **settings: Any,
) -> Tensor:
    """act(norm(conv(x, weight) + bias)), where `convolve` gives act(conv(x, weight) + bias) and the
    weight has the result's channels in `channels_axis`."""
    check_float("x", x)
    check_float("weight", weight)
    if norm is None:
        return convolve(x, weight, bias, act)
    if norm == "batch" and not training and running_mean is not None and running_var is not None:
        parameters = (bias, norm_weight, norm_bias, running_mean, running_var)
        if not (forward_mode() or needs_grad(x, weight, *parameters)):
            weight, bias = _folded(weight, *parameters, channels_axis, eps)
            return convolve(x, weight, bias, act)
    y = convolve(x, weight, bias, "linear")
    statistics: dict[str, Any] = {
        "running_mean": running_mean,
        "running_var": running_var,
        "training": training,
    }
    settings |= {"eps": eps, "act": act, "slope": slope}
    return norm_act(y, norm_weight, norm_bias, norm=norm, **statistics, **settings)


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    channels_axis: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The weight and the bias of the convolution that includes the norm."""
    if weight.dim() != 4:
        raise ValueError(f"weight must have 4 dimensions, got shape {tuple(weight.shape)}")
    shape = (weight.size(channels_axis),)
    for name, t in (
        ("running_mean", mean), ("running_var", var), ("norm_weight", norm_weight),
        ("norm_bias", norm_bias), ("bias", bias),
    ):  # fmt: skip
        if t is not None and t.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(t.shape)}")
    if not eps >= 0:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(var.to(wide) + eps)
    if norm_weight is not None:
        scale = scale * norm_weight
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if norm_bias is not None:
        shift = shift + norm_bias
    along = (-1,) + (1,) * (3 - channels_axis)
    return (weight * scale.view(along)).to(weight.dtype), shift.to(weight.dtype)


def conv_transpose_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    groups: int | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "relu",
    slope: float = 0.2,
) -> Tensor:
    """act(norm(conv_transpose(x, weight) + bias)), differentiable twice.

    Args:
        x: (N, K, H', W') float32, float64, bfloat16 or float16, of any layout.
        weight: (K, C, kh, kw) of x's dtype and device. Under autocast both are cast as torch does.
        bias: (C,) of x's dtype (any of them under autocast), or None.
        stride, padding, output_padding: those of `edge_conv_transpose`, of both axes.
        norm: None, batch, instance, group or layer.
        norm_weight, norm_bias: (C,), the weight and the bias of the norm; None for 1 and 0.
        groups, running_mean, running_var, training, momentum, eps: those of `norm_act`.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's for negative inputs, at least 0.

    Returns:
        (N, C, H, W) of x's dtype, in the layout that `edge_conv_transpose` gives.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message
            names it.
        RuntimeError: a third derivative is asked for where there is none.
    """

    conv = (stride, padding, output_padding)
    ours = (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and serves(x, weight, stride, padding + output_padding)
    )

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
        if ours:
            return convolved(x, weight, bias, *conv, act, slope)[0]
        y = edge_conv_transpose(
            x, weight, stride=stride, padding=padding, output_padding=output_padding
        )
        return y if bias is None and act == "linear" else bias_act(y, bias, act, slope=slope)

    if norm is None and running_mean is not None:
        raise ValueError("running_mean belongs to a norm, got norm=None")
    if ours and norm == "batch" and training and x.numel():
        given = (norm_weight, norm_bias, groups, running_mean, running_var)
        return batch_normed(x, weight, bias, conv, *given, momentum, eps, act, slope)
    return convolve_act(
        convolve,
        x,
        weight,
        bias,
        1,
        norm=norm,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        groups=groups,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        act=act,
        slope=slope,
    )


def _samples() -> tuple[Sample, ...]:
    around_one: dict[str, Any] = {"map": lambda t: 1 + 0.2 * t}
    # Shapes that torch's convolution does not serve: its bits depend on the number of threads.
    return (
        # A generator's last layer.
        Sample("edge, tanh", (T((2, 9, 3, 4)), T((9, 3, 4, 4), scale=0.1), T((3,))),
               {"stride": 2, "padding": 1, "act": "tanh"}),
        # With a bias before the norm.
        Sample("batch norm", (T((2, 8, 3, 2)), T((8, 3, 4, 4), scale=0.3), T((3,))),
               {"stride": 2, "padding": 1, "norm": "batch", "norm_weight": T((3,), **around_one),
                "norm_bias": T((3,))}),
        # A generator's first layer, a matrix product, with running statistics.
        Sample("points, running statistics", (T((3, 4, 1, 1)), T((4, 5, 2, 2))),
               {"norm": "batch", "running_mean": T((5,)), "running_var": T((5,), **around_one),
                "training": False, "act": "leaky_relu"}),
        Sample("group norm", (T((2, 8, 3, 3), channels_last=True), T((8, 4, 3, 3), scale=0.3)),
               {"padding": 1, "norm": "group", "groups": 2, "act": "silu"}),
    )  # fmt: skip


def _bad_calls() -> tuple[BadCall, ...]:
    x, w, b = torch.zeros(2, 4, 3, 3), torch.zeros(4, 6, 4, 4), torch.zeros(6)
    running = {"norm": "batch", "training": False, "running_mean": b, "running_var": b}
    return (
        BadCall("output padding", (x, w), {"stride": 2, "output_padding": 2}, ValueError,
                "output_padding must be less than stride 2, got 2"),
        BadCall("other channels", (x, w[:3]), {}, ValueError, "weight must have 4 in dimension 0"),
        BadCall("a wide bias", (x, w, torch.zeros(7)), {}, ValueError, "bias must have shape"),
        BadCall("unknown norm", (x, w), {"norm": "bach"}, ValueError, "did you mean 'batch'"),
        BadCall("unknown activation", (x, w), {"act": "rely"}, ValueError, "did you mean 'relu'"),
        BadCall("groups", (x, w), {"norm": "group", "groups": 4}, ValueError, "groups must be a positive"),
        BadCall("one value for a mean", (x[:1, :, :1, :1], w[:, :, :1, :1]), {"norm": "batch"},
                ValueError, "more than one value for each mean"),
        BadCall("statistics without a norm", (x, w), {"running_mean": b}, ValueError, "running_mean belongs to a norm"),
        BadCall("wide statistics", (x, w), running | {"running_mean": torch.zeros(5)}, ValueError,
                r"running_mean must have shape \(6,\)"),
        BadCall("a flat weight", (x, w[0]), running, ValueError, "weight must have 4 dimensions"),
        BadCall("negative eps", (x, w), running | {"eps": -1.0}, ValueError, "eps must be finite and at least 0"),
    )  # fmt: skip


def _rows() -> Sequence[Row]:
    def make() -> dict[str, Callable[[], Any]]:
        x = torch.randn(64, 64, 32, 32).contiguous(memory_format=torch.channels_last)
        w, b = torch.randn(64, 3, 4, 4), torch.randn(3)
        return {
            "ours": lambda: conv_transpose_act(x, w, b, stride=2, padding=1, act="tanh"),
            "eager": lambda: torch.tanh(F.conv_transpose2d(x, w, b, 2, 1)),
        }

    flops, bytes = 2 * 64 * 64 * 3 * 64 * 64 * 4, 4 * 64 * 64 * 64 * (16 + 3)
    shape = "64 images of 64 px, k4 s2 p1, channels last"
    return [Row("conv_transpose_act tanh 64->3 fwd", shape, make, bytes=bytes, flops=flops)]


# Half types are rounded between the convolution and the rest, at other places than in torch.
_EPSILON = {torch.float32: 1e-5, torch.float64: 1e-12}
_EPSILON |= {dtype: 2 * torch.finfo(dtype).eps for dtype in FLOATS if dtype not in _EPSILON}

register(
    Op(
        name="conv_transpose_act",
        function=conv_transpose_act,
        reference=conv_transpose_act_reference,
        kernels=KERNELS,
        samples=_samples(),
        bad_calls=_bad_calls(),
        orders=2,
        epsilon=_EPSILON,
        rows=_rows,
    )
)
