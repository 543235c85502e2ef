"""torch: convolutions with the norm and the activation after them, in `nn.Sequential`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pyfastgan.ops import edge_conv, norm_act
from pyfastgan.ops.conv_transpose_act import conv_transpose_act, convolve_act

from .swap import Library, Swap, has_hooks, serves

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)


def kind_of(module: nn.Module) -> type:
    """The class that a module had before it was accelerated."""
    return getattr(type(module), "_plain", type(module))


def _activation(module: nn.Module) -> tuple[str, float] | None:
    """The op's name of an activation and its slope; None if the op has no such."""
    kind = kind_of(module)
    if kind is nn.LeakyReLU:
        slope = float(module.negative_slope)  # type: ignore[arg-type]
        return ("leaky_relu", slope) if slope >= 0 else None
    if kind is nn.GELU:
        return ("gelu", 0.0) if module.approximate == "none" else None
    if kind is nn.Softplus:
        return ("softplus", 0.0) if (module.beta, module.threshold) == (1, 20) else None
    name = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}.get(kind)
    return None if name is None else (name, 0.0)


def _pair(value: Any) -> int | None:
    """The number that holds for both axes."""
    if isinstance(value, int):
        return value
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else None


def refused_in_run(module: nn.Module) -> str | None:
    """Why a convolution or a norm cannot be part of a run; None if it can."""
    if parametrize.is_parametrized(module):
        return "its weight is parametrised"
    if has_hooks(module):
        hooks = [type(h).__name__ for h in module._forward_pre_hooks.values()]
        found = [name for name in hooks if name in ("WeightNorm", "SpectralNorm")]
        return f"it has hooks{f' ({found[0]})' if found else ''}"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    for t in (*module.parameters(), *module.buffers()):
        if t.is_floating_point() and t.dtype not in (torch.float32, torch.float64):
            return f"it holds {str(t.dtype).removeprefix('torch.')}"
    if isinstance(module, CONVOLUTIONS):
        if kind_of(module) not in CONVOLUTIONS:
            return "it is a subclass and may compute something else"
        even = [_pair(v) for v in (module.stride, module.padding, module.output_padding)]
        if module.groups != 1 or _pair(module.dilation) != 1 or module.padding_mode != "zeros":
            return "it has groups, dilation or a padding of its own"
        if None in even or (even[2] or 0) >= (even[0] or 1):
            return "its stride or padding differs between the axes"
        return None
    if kind_of(module) not in NORMS:
        return "it is a subclass and may compute something else"
    if not isinstance(module, nn.GroupNorm):
        if isinstance(module, nn.BatchNorm2d):
            if not module.track_running_stats or module.momentum is None:
                return "it has no running average with a momentum"
        elif module.track_running_stats:
            return "it keeps running statistics"
    return None


class Run(NamedTuple):
    """Neighbours that are computed together; `act` is "linear" where there is no activation."""

    conv: Any
    norm: Any
    act: str
    slope: float
    length: int


def _run_at(modules: list[nn.Module], place: int) -> Run | None:
    """The run that begins here, if there is one that is worth it."""
    following = modules[place : place + 3]
    conv = norm = None
    length = 0
    if isinstance(following[0], CONVOLUTIONS):
        if refused_in_run(following[0]):
            return None
        conv, length = following[0], 1
    after = following[length] if length < len(following) else None
    if isinstance(after, NORMS) and not refused_in_run(after):
        norm, length = after, length + 1
    if length == 0:
        return None
    act, slope = "linear", 0.0
    if length < len(following):
        after = following[length]
        found = _activation(after)
        if found and not has_hooks(after) and "forward" not in vars(after):
            (act, slope), length = found, length + 1
    # Torch's convolution adds a bias in passing: without a norm only those at an image are sooner.
    if length < 2 or (norm is None and not at_image(conv)):
        return None
    return Run(conv, norm, act, slope, length)


def at_image(conv: Any) -> bool:
    """Whether torch's convolution is the slower one: with few channels on a side."""
    return min(conv.in_channels, conv.out_channels) <= 4


def _norm_settings(norm: Any, again: bool) -> dict[str, Any]:
    """The arguments of `norm_act` beside the parameters; without the running averages of a batch that they know."""
    if isinstance(norm, nn.GroupNorm):
        return {"norm": "group", "groups": norm.num_groups, "eps": norm.eps}
    if isinstance(norm, nn.InstanceNorm2d):
        return {"norm": "instance", "eps": norm.eps}
    known = again and norm.training
    return {
        "norm": "batch",
        "running_mean": None if known else norm.running_mean,
        "running_var": None if known else norm.running_var,
        "training": norm.training,
        "momentum": norm.momentum,
        "eps": norm.eps,
    }


def compute(run: Run, x: Tensor, last: bool, again: bool = False) -> Tensor:
    """`last`: with the channels last; `again`: of a batch for which it has been computed before."""
    conv, norm = run.conv, run.norm
    if last and not (isinstance(conv, nn.Conv2d) and conv.in_channels <= 4):
        x = x.contiguous(memory_format=torch.channels_last)
    if isinstance(norm, nn.BatchNorm2d) and norm.training and not again:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
    act: dict[str, Any] = {"act": run.act, "slope": run.slope}
    if conv is None:
        return norm_act(x, norm.weight, norm.bias, **_norm_settings(norm, again), **act)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
        how: dict[str, Any] = {"stride": conv.stride[0], "padding": conv.padding[0]}
        how |= {"act": name, "slope": run.slope}
        if isinstance(conv, nn.Conv2d):
            return edge_conv(x, weight, bias, channels_last=last or None, **how)
        return conv_transpose_act(x, weight, bias, output_padding=conv.output_padding[0], **how)

    settings: dict[str, Any] = {"norm": None, "norm_weight": None, "norm_bias": None}
    if norm is not None:
        settings = {
            "norm_weight": norm.weight,
            "norm_bias": norm.bias,
            **_norm_settings(norm, again),
        }
    axis = 0 if isinstance(conv, nn.Conv2d) else 1
    return convolve_act(convolve, x, conv.weight, conv.bias, axis, **settings, **act)


class Sequential(nn.Sequential):
    """Its modules stay where they are. What is a run is looked up in every call, so that hooks, parametrisations and
    modules that come later are seen.

    Between neighbouring runs with convolutions images have their channels last, in which torch convolves sooner on a
    CPU; other modules, and the caller, get the layout that they would have had.
    """

    def forward(self, input: Any) -> Any:
        x, modules, place = input, list(self._modules.values()), 0
        last = turned = False
        while place < len(modules):
            run = None
            if isinstance(x, Tensor) and x.dim() == 4 and serves(x):
                run = _run_at(modules, place)
            if run is None:
                x = modules[place](_turned_back(x, turned))
                place, last, turned = place + 1, False, False
                continue
            place += run.length
            follows = _run_at(modules, place) if place < len(modules) else None
            if run.conv and follows and follows.conv and x.device.type == "cpu" and not last:
                last, turned = True, _as_rows(x)
            x = compute(run, x, last)
        return _turned_back(x, turned)


def _as_rows(x: Tensor) -> bool:
    """Whether images do not have their channels last, so that results do not either."""
    return x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)


def _turned_back(x: Any, turned: bool) -> Any:
    return x.contiguous() if turned and isinstance(x, Tensor) else x


def _runs(row: nn.Sequential) -> Iterator[Run]:
    modules, place = list(row._modules.values()), 0
    while place < len(modules):
        run = _run_at(modules, place)
        if run is not None:
            yield run
        place += run.length if run else 1


def _reason(row: nn.Sequential) -> str | None:
    """Nothing is said of rows without a run."""
    return None if next(_runs(row), None) else ""


def _left_alone(row: nn.Sequential) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in row._modules.items():
        if isinstance(module, CONVOLUTIONS + NORMS):
            reason = refused_in_run(module)
            if reason:
                yield name, module, reason


LIBRARY = Library(
    swaps={
        nn.Sequential: Swap(
            Sequential, "edge_conv, conv_transpose_act, norm_act, bias_act", _reason, _left_alone
        )
    },
    named=(),
)
