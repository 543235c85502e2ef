"""PixelCNN with masked convolutions: van den Oord, Kalchbrenner & Kavukcuoglu (2016), "Pixel recurrent
neural networks"."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan._names import check_choice
from pyfastgan.autoregressive.likelihood import Likelihood
from pyfastgan.autoregressive.network import (
    CausalNetwork,
    at_point,
    check_count,
    check_kernel,
    class_vectors,
)


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees the pixels before its own in raster order, and with kind "B" its own.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel_size: Odd.
        kind: "A" for the first layer, which sees the image itself, "B" for later ones.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, kernel_size: int, kind: str) -> None:
        check_choice("kind", kind, ("A", "B"))
        check_kernel("kernel_size", kernel_size, at_least=3 if kind == "A" else 1)
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2)
        seen = torch.arange(kernel_size**2) < kernel_size**2 // 2 + (kind == "B")
        mask = seen.view(kernel_size, kernel_size).to(self.weight.dtype)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        return functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class _Block(nn.Module):
    """The paper's residual block (figure 5): 1x1 to half the channels, masked, 1x1 back."""

    def __init__(self, width: int, kernel_size: int, classes: int | None, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        half = max(width // 2, 1)
        self.shrink = nn.Conv2d(width, half, 1)
        self.masked = MaskedConv2d(half, half, kernel_size, "B")
        self.grow = nn.Conv2d(half, width, 1)
        self.condition = class_vectors(classes, half)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        y = self.masked(self.shrink(x.relu()).relu())
        if self.condition is not None:
            y = y + self.condition(labels)[:, :, None, None]
        return x + cast("Tensor", self.grow(self.dropout(y.relu())))


class PixelCNN(CausalNetwork):
    """PixelCNN. Its masked kernels leave a blind spot to the upper right; `GatedPixelCNN` has none.

    Args:
        likelihood: What a pixel is.
        shape: Height and width of the images.
        layers: Residual blocks.
        width: Channels of the maps.
        kernel_size: Of the blocks; odd.
        first_kernel_size: Of the first layer, which sees the image; odd, at least 3.
        dropout: In training, the share of each block's features that is dropped.
        classes: Number of classes to condition on, or None.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        shape: tuple[int, int],
        *,
        layers: int = 6,
        width: int = 64,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        dropout: float = 0.0,
        classes: int | None = None,
    ) -> None:
        super().__init__(likelihood, shape, width=width, classes=classes)
        check_count("layers", layers)
        check_kernel("kernel_size", kernel_size)
        check_kernel("first_kernel_size", first_kernel_size, at_least=3)
        self.first = MaskedConv2d(width, width, first_kernel_size, "A")
        self.blocks = nn.ModuleList(
            _Block(width, kernel_size, classes, dropout) for _ in range(layers)
        )

    def features(
        self, embedded: Tensor, labels: Tensor | None, above: Tensor | None = None
    ) -> Tensor:
        """As the base class says."""
        x = self.first(embedded)
        for block in self.blocks:
            x = block(x, labels)
        return x

    def begin(
        self, count: int, labels: Tensor | None = None, above: Tensor | None = None
    ) -> _Cache:
        """As the base class says."""
        self.check_conditions(labels, above, count)
        return _Cache(self, count, labels)


class _Window:
    """The inputs of one masked convolution, and its value at a pixel from those before it."""

    def __init__(self, layer: MaskedConv2d, count: int, shape: tuple[int, int]) -> None:
        size = layer.kernel_size[0]
        self.reach, self.size = size // 2, size
        # Rows below the pixel's are never seen; within its row the mask's zeros remain.
        kernel = (layer.weight * layer.mask)[:, :, : self.reach + 1]
        self.weight = kernel.permute(0, 2, 3, 1).flatten(1).contiguous()
        self.bias = layer.bias
        self.inputs = layer.weight.new_zeros(
            count, shape[0] + self.reach, shape[1] + 2 * self.reach, layer.in_channels
        )

    def put(self, row: int, column: int, x: Tensor) -> None:
        self.inputs[:, row + self.reach, column + self.reach] = x

    def value(self, row: int, column: int) -> Tensor:
        window = self.inputs[:, row : row + self.reach + 1, column : column + self.size]
        return functional.linear(window.flatten(1), self.weight, self.bias)


class _Cache:
    """The inputs of every masked convolution at the pixels so far."""

    def __init__(self, network: PixelCNN, count: int, labels: Tensor | None) -> None:
        self.network, self.pixel = network, 0
        blocks = cast("list[_Block]", list(network.blocks))
        self.first = _Window(network.first, count, network.shape)
        self.blocks = [
            (
                block,
                _Window(block.masked, count, network.shape),
                None if block.condition is None else block.condition(labels),
            )
            for block in blocks
        ]

    def parameters(self) -> Tensor:
        row, column = divmod(self.pixel, self.network.shape[1])
        x = self.first.value(row, column)
        for block, window, condition in self.blocks:
            window.put(row, column, at_point(block.shrink, x.relu()).relu())
            y = window.value(row, column)
            if condition is not None:
                y = y + condition
            x = x + at_point(block.grow, y.relu())
        return self.network.point_head(x)

    def append(self, value: Tensor) -> None:
        self.first.put(*divmod(self.pixel, self.network.shape[1]), self.network.embed(value))
        self.pixel += 1
