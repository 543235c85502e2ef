"""The networks inside couplings and autoregressive layers.

All take an optional condition (N, condition) beside their input. Their last layer starts at zero, so that a flow
starts as what its layers are at zero: the identity, or nearly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfastgan.training.config import check_number


class ResidualNet(nn.Module):
    """Vectors (N, inputs) to (N, outputs): a linear layer, residual blocks of two, a linear layer.

    The names and shapes of nflows' `ResidualNet` without context: its state loads.

    Args:
        inputs, outputs: Numbers of a vector.
        width: Of the hidden layers.
        blocks: How many.
        condition: Numbers of the condition, which is put beside the input.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int = 64, blocks: int = 2, condition: int = 0
    ) -> None:
        super().__init__()
        _check(inputs=inputs, outputs=outputs, width=width)
        self.initial_layer = nn.Linear(inputs + condition, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.final_layer = nn.Linear(width, outputs)
        _zero(self.final_layer)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            x = torch.cat((x, condition), 1)
        x = self.initial_layer(x)
        for block in self.blocks:
            x = block(x)
        return self.final_layer(x)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        for parameter in self.linear_layers[1].parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear_layers[0](F.relu(x))
        return x + self.linear_layers[1](F.relu(hidden, inplace=True))


class ConvNet(nn.Module):
    """Images (N, inputs, H, W) to (N, outputs, H, W): Glow's 3x3, 1x1 and 3x3 convolutions with ReLU between.

    Args:
        inputs, outputs: Channels.
        width: Channels of the hidden layers.
        condition: Numbers of the condition, which shifts the first layer's channels.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int = 64, condition: int = 0) -> None:
        super().__init__()
        _check(inputs=inputs, outputs=outputs, width=width)
        self.first = nn.Conv2d(inputs, width, 3, 1, 1)
        self.middle = nn.Conv2d(width, width, 1)
        self.final_layer = nn.Conv2d(width, outputs, 3, 1, 1)
        _zero(self.final_layer)
        self.shift = nn.Linear(condition, width, bias=False) if condition else None
        # On a CPU a pass at 16 x 16 takes half the time, though what comes in and goes out lies otherwise.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        # Once here, and not in the convolution and in its backward pass.
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        if condition is not None and self.shift is not None:
            x = x + self.shift(condition)[:, :, None, None]
        x = self.middle(F.relu(x, inplace=True))
        return self.final_layer(F.relu(x, inplace=True))


class MaskedLinear(nn.Linear):
    """A linear layer that sees of its input what a mask, stored with the model, lets through."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.size(1), mask.size(0))
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Vectors (N, features) to (N, features * multiplier), where the numbers for feature i depend on features 0 to
    i - 1 alone (Germain et al. 2015): masked linear layers, with residual blocks of two between the first and the last.

    The names, shapes and masks of nflows' `MADE` without context: its state loads, but for its `degrees`.

    Args:
        features: D.
        multiplier: Numbers for each feature, next to each other.
        width: Of the hidden layers; at least D - 1, so that every feature is seen.
        blocks: How many.
        condition: Numbers of the condition, which all outputs see.
    """

    def __init__(
        self,
        features: int,
        multiplier: int,
        *,
        width: int = 64,
        blocks: int = 2,
        condition: int = 0,
    ) -> None:
        super().__init__()
        _check(features=features, multiplier=multiplier, width=width)
        if width < features - 1:
            raise ValueError(
                f"width must be at least features - 1 = {features - 1}, or some feature is seen by none, got {width}"
            )
        inputs = torch.arange(1, features + 1)
        hidden = torch.arange(width) % max(1, features - 1) + min(1, features - 1)
        outputs = inputs.repeat_interleave(multiplier)
        self.initial_layer = MaskedLinear(hidden[:, None] >= inputs)
        self.context_layer = nn.Linear(condition, width) if condition else None
        self.blocks = nn.ModuleList(_MaskedBlock(hidden) for _ in range(blocks))
        self.final_layer = MaskedLinear(outputs[:, None] > hidden)
        _zero(self.final_layer)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.initial_layer(x)
        if condition is not None and self.context_layer is not None:
            x = x + F.relu(self.context_layer(condition))
        for block in self.blocks:
            x = block(x)
        return self.final_layer(x)


class _MaskedBlock(_Block):
    def __init__(self, degrees: Tensor) -> None:
        super().__init__(len(degrees))
        second = self.linear_layers[1].state_dict()
        mask = degrees[:, None] >= degrees
        self.linear_layers = nn.ModuleList(MaskedLinear(mask) for _ in range(2))
        self.linear_layers[1].load_state_dict(second, strict=False)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        check_number(name, count, int, at_least=1)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
