"""Convolution, normalisation and activation as one layer, and rows of such layers.

A block holds torch's own convolution and norm as its children "0" and "1", so that its state is
that of `nn.Sequential(convolution, norm, activation)`, and computes the three at once: the
convolution as `pyfastgan.ops.edge_conv` or `conv_transpose_act`, the rest as `norm_act` or
`bias_act`. Where no gradient is needed, evaluation folds a batch norm into the convolution.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.ops import conv_transpose_act, edge_conv
from pyfastgan.ops.bias_act import ACTIVATIONS
from pyfastgan.ops.conv_transpose_act import convolve_act
from pyfastgan.ops.norm_act import NORMS

_Norm = nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm


def _norm_layer(norm: str, channels: int, groups: int | None, **where: Any) -> _Norm:
    """The layer of torch whose parameters and state the norm has."""
    check_choice("norm", norm, NORMS)
    if norm == "group":
        if not isinstance(groups, int) or groups < 1 or channels % groups:
            raise ValueError(
                f"groups must be a positive integer that divides {channels} channels, got {groups!r}"
            )
        return nn.GroupNorm(groups, channels, **where)
    if groups is not None:
        raise ValueError(f"groups belongs to norm='group', got groups={groups!r} with {norm!r}")
    if norm == "layer":
        return nn.GroupNorm(1, channels, **where)
    return (nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d)(channels, **where)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Block(nn.Module):
    _channels_axis: int  # of the weight: the channels of the result

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        norm: str | None,
        groups: int | None,
        act: str,
        slope: float,
    ) -> None:
        super().__init__()
        check_choice("act", act, ACTIVATIONS)
        self.act, self.slope = act, slope
        self.add_module("0", conv)
        if norm is not None:
            where = {"device": conv.weight.device, "dtype": conv.weight.dtype}
            self.add_module("1", _norm_layer(norm, conv.out_channels, groups, **where))
        elif groups is not None:
            raise ValueError(f"groups belongs to norm='group', got groups={groups!r} with None")

    @property
    def conv(self) -> Any:
        """The `nn.Conv2d` or `nn.ConvTranspose2d`."""
        return self._modules["0"]

    @property
    def norm(self) -> _Norm | None:
        """The `nn.BatchNorm2d`, `nn.InstanceNorm2d` or `nn.GroupNorm`."""
        return cast("_Norm | None", self._modules.get("1"))

    @property
    def layers(self) -> int:
        """How many layers of an `nn.Sequential` this block stands for."""
        return 1 + (self.norm is not None) + (self.act != "linear")

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
        """act(conv(x, weight) + bias)."""
        raise NotImplementedError

    def _norm_settings(self) -> dict[str, Any] | None:
        """The arguments of `norm_act`; None if only the layer itself knows what it does."""
        norm = self.norm
        if norm is None:
            return {"norm": None, "norm_weight": None, "norm_bias": None}
        settings = {"norm_weight": norm.weight, "norm_bias": norm.bias, "eps": norm.eps}
        if type(norm) is nn.GroupNorm:
            return settings | {"norm": "group", "groups": norm.num_groups}
        if type(norm) is nn.InstanceNorm2d and not norm.track_running_stats:
            return settings | {"norm": "instance"}
        if type(norm) is nn.BatchNorm2d and not norm.track_running_stats:
            return settings | {"norm": "batch"}
        if type(norm) is nn.BatchNorm2d and norm.momentum is not None:
            return settings | {
                "norm": "batch",
                "running_mean": norm.running_mean,
                "running_var": norm.running_var,
                "training": norm.training,
                "momentum": norm.momentum,
            }
        return None

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, settings = self.conv, self.norm, self._norm_settings()
        if settings is None or _has_hooks(conv) or (norm is not None and _has_hooks(norm)):
            y = conv(x) if norm is None else norm(conv(x))
            return ACTIVATIONS[self.act].value(y, self.slope)
        if (
            isinstance(norm, nn.BatchNorm2d)
            and norm.training
            and norm.num_batches_tracked is not None
        ):
            norm.num_batches_tracked.add_(1)
        return convolve_act(
            self._convolve,
            x,
            conv.weight,
            conv.bias,
            self._channels_axis,
            act=self.act,
            slope=self.slope,
            **settings,
        )

    def extra_repr(self) -> str:
        return f"act={self.act!r}" + (f", slope={self.slope}" if self.act == "leaky_relu" else "")


class ConvBlock(_Block):
    """act(norm(conv(x))) over images (N, in_channels, H, W).

    Args:
        in_channels, out_channels, kernel_size, stride, padding: those of `nn.Conv2d`.
        norm: None, or batch, instance, group or layer (one group).
        groups: how many, for "group" only; it divides out_channels.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's.
        bias: whether the convolution has one; by default where there is no norm, which would take
            it out again.
        channels_last: the layout of the result where the image has few channels; by default that
            of x and the weight, which an image of one channel does not show.

    Children: `conv`, an `nn.Conv2d`, and `norm`, None or torch's layer: an `nn.BatchNorm2d`, an
    `nn.InstanceNorm2d` (without parameters, as torch's default is) or an `nn.GroupNorm`.
    """

    _channels_axis = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        norm: str | None = None,
        groups: int | None = None,
        act: str = "leaky_relu",
        slope: float = 0.2,
        bias: bool | None = None,
        channels_last: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            bias=norm is None if bias is None else bias,
            device=device,
            dtype=dtype,
        )
        super().__init__(conv, norm, groups, act, slope)
        self.channels_last = channels_last

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
        conv = self.conv
        return edge_conv(
            x,
            weight,
            bias,
            stride=conv.stride[0],
            padding=conv.padding[0],
            act=act,
            slope=self.slope,
            channels_last=self.channels_last,
        )


class ConvTransposeBlock(_Block):
    """act(norm(conv_transpose(x))) over images (N, in_channels, H, W).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding: those of
            `nn.ConvTranspose2d`.
        norm: None, or batch, instance, group or layer (one group).
        groups: how many, for "group" only; it divides out_channels.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's.
        bias: whether the convolution has one; by default where there is no norm, which would take
            it out again.

    Children: `conv`, an `nn.ConvTranspose2d`, and `norm`, None or torch's layer: an `nn.BatchNorm2d`, an
    `nn.InstanceNorm2d` (without parameters, as torch's default is) or an `nn.GroupNorm`.
    """

    _channels_axis = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        *,
        norm: str | None = None,
        groups: int | None = None,
        act: str = "relu",
        slope: float = 0.2,
        bias: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if output_padding >= stride:
            raise ValueError(
                f"output_padding must be less than stride {stride}, got {output_padding}"
            )
        conv = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            bias=norm is None if bias is None else bias,
            device=device,
            dtype=dtype,
        )
        super().__init__(conv, norm, groups, act, slope)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
        conv = self.conv
        return conv_transpose_act(
            x,
            weight,
            bias,
            stride=conv.stride[0],
            padding=conv.padding[0],
            output_padding=conv.output_padding[0],
            act=act,
            slope=self.slope,
        )


class FusedSequential(nn.Sequential):
    """A row of modules that loads and saves the state of the same row with every block written out.

    Where `nn.Sequential` has a convolution, a norm and an activation at places i, i+1 and i+2, one
    block stands here, and its state has the keys `i.*` and `(i+1).*`: weights move between the two
    in both directions.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self._register_state_dict_hook(_write_out)
        self._register_load_state_dict_pre_hook(_gather, with_module=True)

    def _places(self) -> list[tuple[str, str]]:
        """For each prefix of a child's keys here, the prefix in the unfused row."""
        pairs, place = [], 0
        for name, module in self._modules.items():
            if isinstance(module, _Block):
                pairs.append((f"{name}.0.", f"{place}."))
                if module.norm is not None:
                    pairs.append((f"{name}.1.", f"{place + 1}."))
                place += module.layers
            else:
                pairs.append((f"{name}.", f"{place}."))
                place += 1
        return pairs


def _rename(state: dict[str, Any], pairs: list[tuple[str, str]], prefix: str) -> None:
    """Replaces the first matching prefix of each key under `prefix`, all at once, since the two
    ranges overlap."""
    taken = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    for key, value in taken.items():
        rest = key.removeprefix(prefix)
        old, new = next(((o, n) for o, n in pairs if rest.startswith(o)), ("", ""))
        state[prefix + new + rest.removeprefix(old)] = value


def _write_out(
    row: FusedSequential, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    _rename(state, row._places(), prefix)


def _gather(row: FusedSequential, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, [(new, old) for old, new in row._places()], prefix)
