"""Convolution, normalisation and activation as one layer, and rows of such layers.

The convolution and the batch norm are torch's own. A block holds them as its children "0" and "1",
so that its state is that of `nn.Sequential(convolution, norm, activation)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.ops import bias_act
from pyfastgan.ops.bias_act import ACTIVATIONS

_NORMS = ("batch",)


class _Block(nn.Module):
    _convolve: Callable[[Tensor], Tensor]  # the convolution without its bias

    def __init__(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, norm: str | None, act: str, slope: float
    ) -> None:
        super().__init__()
        if norm is not None:
            check_choice("norm", norm, _NORMS)
        check_choice("act", act, ACTIVATIONS)
        self.act, self.slope = act, slope
        self.add_module("0", conv)
        if norm is not None:
            self.add_module(
                "1",
                nn.BatchNorm2d(
                    conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype
                ),
            )

    @property
    def conv(self) -> Any:
        """The `nn.Conv2d` or `nn.ConvTranspose2d`."""
        return self._modules["0"]

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        return self._modules.get("1")  # type: ignore[return-value]

    @property
    def layers(self) -> int:
        """How many layers of an `nn.Sequential` this block stands for."""
        return 1 + (self.norm is not None) + (self.act != "linear")

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            # No bias to join the activation: torch's own is as fast, and cheaper to call.
            return ACTIVATIONS[self.act].value(self.norm(self.conv(x)), self.slope)
        # The bias joins the activation: its gradient then comes out of the same pass.
        return bias_act(self._convolve(x), self.conv.bias, self.act, slope=self.slope)

    def extra_repr(self) -> str:
        return f"act={self.act!r}" + (f", slope={self.slope}" if self.act == "leaky_relu" else "")


class ConvBlock(_Block):
    """act(norm(conv(x))) over images (N, in_channels, H, W).

    Args:
        in_channels, out_channels, kernel_size, stride, padding: those of `nn.Conv2d`.
        norm: "batch" or None.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's.
        bias: whether the convolution has one; by default where there is no norm, which would take
            it out again.

    Children: `conv`, an `nn.Conv2d`, and `norm`, an `nn.BatchNorm2d` or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        norm: str | None = None,
        act: str = "leaky_relu",
        slope: float = 0.2,
        bias: bool | None = None,
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
        super().__init__(conv, norm, act, slope)

    def _convolve(self, x: Tensor) -> Tensor:
        return self.conv._conv_forward(x, self.conv.weight, None)


class ConvTransposeBlock(_Block):
    """act(norm(conv_transpose(x))) over images (N, in_channels, H, W).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding: those of
            `nn.ConvTranspose2d`.
        norm: "batch" or None.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's.
        bias: whether the convolution has one; by default where there is no norm, which would take
            it out again.

    Children: `conv`, an `nn.ConvTranspose2d`, and `norm`, an `nn.BatchNorm2d` or None.
    """

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
        super().__init__(conv, norm, act, slope)

    def _convolve(self, x: Tensor) -> Tensor:
        conv = self.conv
        return torch.conv_transpose2d(
            x, conv.weight, None, conv.stride, conv.padding, conv.output_padding
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
