"""Encoders and decoders: perceptrons for small images, convolutions for larger ones; linear layers.

The first two take the class of each image as one-hot numbers where they were built with `classes`. There is no
batch norm: a bound on log p(x) is one of each image alone.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyfastgan.nn import ConvBlock, ConvTransposeBlock

# Grey images of up to 32 pixels a side, colour ones of up to 18, get perceptrons by default.
_SMALL = 1024
# Of the weights, and hence of the maps: a step at 64 pixels takes 6% less time on a CPU.
_LAYOUT = torch.channels_last


def default_network(shape: tuple[int, ...]) -> str:
    """The kind of network that suits images of a shape: "mlp" or "conv"."""
    return "mlp" if math.prod(shape) <= _SMALL else "conv"


def default_width(kind: str) -> int:
    """Units, or channels of the first convolution."""
    return 400 if kind == "mlp" else 32


def encoder(
    kind: str, shape: tuple[int, int, int], outputs: int, width: int, classes: int = 0
) -> nn.Module:
    """Images (N, C, H, W), and one-hot classes (N, classes) if any, to (N, outputs)."""
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))
    if kind == "mlp":
        return _Perceptron(math.prod(shape) + classes, width, (outputs,))
    return _ConvEncoder(shape, outputs, width, classes)


def decoder(
    kind: str, shape: tuple[int, int, int], inputs: int, width: int, classes: int = 0
) -> nn.Module:
    """Latent vectors (N, inputs), and one-hot classes (N, classes) if any, to (N, C, H, W)."""
    if kind == "linear":
        return nn.Sequential(nn.Linear(inputs, math.prod(shape)), nn.Unflatten(1, shape))
    if kind == "mlp":
        return _Perceptron(inputs + classes, width, shape)
    return _ConvDecoder(shape, inputs + classes, width)


def halvings(shape: tuple[int, int, int]) -> int:
    """How often an image is halved on the way to a map of 4 to 7 pixels.

    Raises `ValueError` for a size that does not lead there.
    """
    size, count = shape[-1], 0
    while size > 7 and size % 2 == 0:
        size, count = size // 2, count + 1
    if shape[-2] != shape[-1] or not 4 <= size <= 7 or count == 0:
        raise ValueError(
            "convolutional networks take square images of 4, 5, 6 or 7 pixels doubled once or more,"
            f" got {shape[-2]} x {shape[-1]}"
        )
    return count


class _Perceptron(nn.Module):
    """Two hidden layers of `width` units with ReLU."""

    def __init__(self, inputs: int, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.main = nn.Sequential(
            nn.Linear(inputs, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, math.prod(shape)),
        )

    def forward(self, x: Tensor, one_hot: Tensor | None = None) -> Tensor:
        return self.main(_join(x.flatten(1), one_hot)).unflatten(1, self.shape)


class _ConvEncoder(nn.Module):
    """4 x 4 convolutions that halve the image; the first has `width` channels, the others double them."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, width: int, classes: int) -> None:
        super().__init__()
        count = halvings(shape)
        widths = [shape[0] + classes, *(width * 2**i for i in range(count))]
        self.main = nn.Sequential(
            *(ConvBlock(a, b, 4, 2, 1, act="relu") for a, b in pairwise(widths)),
            nn.Flatten(),
            nn.Linear(widths[-1] * (shape[-1] >> count) ** 2, outputs),
        )
        self.to(memory_format=_LAYOUT)  # type: ignore[call-overload]

    def forward(self, x: Tensor, one_hot: Tensor | None = None) -> Tensor:
        if one_hot is not None:
            one_hot = one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.main(_join(x, one_hot))


class _ConvDecoder(nn.Module):
    """The mirror of the encoder."""

    def __init__(self, shape: tuple[int, int, int], inputs: int, width: int) -> None:
        super().__init__()
        count = halvings(shape)
        size = shape[-1] >> count
        widths = [*(width * 2**i for i in reversed(range(count))), shape[0]]
        self.main = nn.Sequential(
            nn.Linear(inputs, widths[0] * size**2),
            nn.Unflatten(1, (widths[0], size, size)),
            nn.ReLU(inplace=True),
            *(ConvTransposeBlock(a, b, 4, 2, 1, act="relu") for a, b in pairwise(widths[:-1])),
            ConvTransposeBlock(widths[-2], widths[-1], 4, 2, 1, act="linear"),
        )
        self.to(memory_format=_LAYOUT)  # type: ignore[call-overload]

    def forward(self, z: Tensor, one_hot: Tensor | None = None) -> Tensor:
        return self.main(_join(z, one_hot))


def _join(x: Tensor, one_hot: Tensor | None) -> Tensor:
    return x if one_hot is None else torch.cat((x, one_hot.to(x.dtype)), 1)
