"""What all networks of this family are told of time and class, and a network for vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.ops._common import accumulation

# Numbers of a time's sines and cosines.
_FEATURES = 64


class Embedding(nn.Module):
    """A vector (N, width) for a time and a class.

    Args:
        width: Numbers in it.
        time_scale: What a time is multiplied by before its sines and cosines, whose periods go from
            2 pi to 2 pi 10,000: 1 for the numbers of a thousand levels.
        classes: Of a conditional network; number `classes` itself stands for no class.
    """

    def __init__(self, width: int, time_scale: float = 1.0, classes: int | None = None) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.first = nn.Linear(_FEATURES, width)
        self.second = nn.Linear(width, width)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, time: Tensor, labels: Tensor | None) -> Tensor:
        if (labels is None) != (self.label is None):
            raise ValueError(
                "labels must be given to a conditional network, and to no other, got "
                + ("none" if labels is None else f"shape {tuple(labels.shape)}")
            )
        dtype = self.first.weight.dtype
        # Not in a half type, which does not tell level 999 from 1,000.
        wide, half = accumulation(dtype), _FEATURES // 2
        steps = torch.arange(half, dtype=wide, device=time.device)
        frequencies = self.time_scale * torch.exp(steps * (-math.log(10_000) / half))
        angle = time.to(wide)[:, None] * frequencies
        found = torch.cat((angle.sin(), angle.cos()), 1).to(dtype)
        found = self.second(functional.silu(self.first(found)))
        return found if self.label is None else found + self.label(labels)


def check_times(time: Tensor, x: Tensor) -> None:
    """Refuses what is not a time for each sample of a network's input x."""
    if time.shape != x.shape[:1]:
        raise ValueError(f"time must be of shape ({x.size(0)},) like x, got {tuple(time.shape)}")


class MLP(nn.Module):
    """A network for vectors (N, dim): `layers` linear layers with SiLU, the first of which is told time and class.

    Args:
        dim: Numbers in a vector.
        out: Numbers that are predicted; `dim` by default.
        width: Of the hidden layers.
        layers: Hidden layers, at least 1.
        classes, time_scale: Of the `Embedding`.
        self_conditioning: Whether an earlier estimate of x_0 is an input too.

    Raises `ValueError` for counts below 1.
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        out: int | None = None,
        width: int = 256,
        layers: int = 4,
        classes: int | None = None,
        time_scale: float = 1.0,
        self_conditioning: bool = False,
    ) -> None:
        super().__init__()
        for name, count in (("dim", dim), ("width", width), ("layers", layers)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.dim, self.self_conditioning = dim, self_conditioning
        self.embedding = Embedding(width, time_scale, classes)
        self.input = nn.Linear(dim * (1 + self_conditioning), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.output = nn.Linear(width, out or dim)

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, x0: Tensor | None = None
    ) -> Tensor:
        """The prediction (N, out).

        Args:
            x: (N, dim).
            time: (N,).
            labels: int64 (N,), of a conditional network.
            x0: (N, dim), the estimate of a network with self-conditioning; zeros by default.
        """
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be of shape (N, {self.dim}), got {tuple(x.shape)}")
        check_times(time, x)
        x = with_estimate(x, x0) if self.self_conditioning else x
        h = functional.silu(self.input(x) + self.embedding(time, labels))
        for layer in self.hidden:
            h = functional.silu(layer(h))
        return self.output(h)


def with_estimate(x: Tensor, x0: Tensor | None) -> Tensor:
    """A network's input with self-conditioning (Chen, Zhang & Hinton 2023): x, and an estimate of x_0 or zeros."""
    return torch.cat((x, torch.zeros_like(x) if x0 is None else x0), 1)
