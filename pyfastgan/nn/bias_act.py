"""A bias and an activation as one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyfastgan.ops import bias_act


class BiasAct(nn.Module):
    """clamp(gain * act(x + bias)) over (N, channels, ...), by `pyfastgan.ops.bias_act`.

    Args:
        channels: size of dimension 1; at least 1.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's.
        gain: factor after the activation.
        clamp: bound of the result's magnitude, or None.

    The bias starts at zero. Errors are those of the op, raised when it is called.
    """

    def __init__(
        self,
        channels: int,
        act: str = "leaky_relu",
        *,
        slope: float = 0.2,
        gain: float = 1.0,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.act, self.slope, self.gain, self.clamp = act, slope, gain, clamp
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(x, self.bias, self.act, slope=self.slope, gain=self.gain, clamp=self.clamp)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, act={self.act!r}, slope={self.slope}, gain={self.gain}, clamp={self.clamp}"
