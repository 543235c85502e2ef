"""What a pixel is to an autoregressive network: what goes in, what comes out, and its distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.data.datasets import check_range
from pyfastgan.ops import (
    discretized_mix_logistic,
    random_uniform,
    sample_discretized_mix_logistic,
)


@dataclass(frozen=True)
class Softmax:
    """One of `levels` values a pixel, each with a logit: grey levels, or the codes of a codebook.

    Values are int64 (N, H, W), parameters (N, levels, H, W).
    """

    levels: int

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    @property
    def planes(self) -> int:
        """Parameters a pixel."""
        return self.levels

    @property
    def dims(self) -> int:
        """Numbers a pixel."""
        return 1

    def embedding(self, width: int) -> nn.Module:
        """Maps values (...) to vectors (..., width)."""
        return nn.Embedding(self.levels, width)

    def pixels(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Values as the embedding takes them."""
        return values

    def check(self, values: Tensor, shape: tuple[int, int]) -> None:
        """Raise unless these are values. Their range is looked at where that makes no GPU wait."""
        if values.dtype != torch.int64:
            raise TypeError(f"values must be int64, got {values.dtype}")
        if tuple(values.shape[1:]) != shape or values.ndim != 3:
            raise ValueError(
                f"values must be of shape (N, {shape[0]}, {shape[1]}), got {tuple(values.shape)}"
            )
        if values.device.type == "cpu" and values.numel():
            low, high = (int(bound) for bound in values.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"values must lie in [0, {self.levels}), got {low} to {high}")

    def nll(self, values: Tensor, parameters: Tensor) -> Tensor:
        """(N,) in nats, float32 or better."""
        logits = _wide(parameters)
        return functional.cross_entropy(logits, values, reduction="none").flatten(1).sum(1)

    def draw(self, parameters: Tensor, seed: int, pixel: int, offset: int) -> Tensor:
        """Values (N,) of one pixel from its parameters (N, levels), by the inverse of their cdf."""
        uniform = random_uniform(
            (len(parameters), 1), seed, stream=pixel, sample_offset=offset, dtype=torch.float64
        ).to(parameters.device)
        steps = parameters.double().softmax(1).cumsum(1)
        return (steps < uniform).sum(1).clamp_(max=self.levels - 1)

    def empty(self, count: int, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Room for the values of `count` images."""
        return torch.zeros((count, *shape), dtype=torch.int64, device=device)


@dataclass(frozen=True)
class LogisticMixture:
    """8-bit images by a mixture of discretised logistics (Salimans et al. 2017, "PixelCNN++").

    Values are (N, channels, H, W) in [-1, 1], one of (k / 127.5) - 1; parameters are
    (N, 10 components or 3 components, H, W), as `pyfastgan.ops.discretized_mix_logistic` has them.
    """

    channels: int
    components: int = 10

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")

    @property
    def planes(self) -> int:
        """Parameters a pixel."""
        return self.components * (10 if self.channels == 3 else 3)

    @property
    def dims(self) -> int:
        """Numbers a pixel."""
        return self.channels

    def embedding(self, width: int) -> nn.Module:
        """Maps pixels (..., channels) to vectors (..., width). Its bias tells a pixel from the zeros
        beyond the border."""
        return nn.Linear(self.channels, width)

    def pixels(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Values as the embedding takes them, their channels last."""
        return values.movedim(1, -1).to(dtype)

    def check(self, values: Tensor, shape: tuple[int, int]) -> None:
        """Raise unless these are values. Their range is looked at where that makes no GPU wait."""
        if not values.is_floating_point():
            raise TypeError(f"values must be floating point in [-1, 1], got {values.dtype}")
        if tuple(values.shape[1:]) != (self.channels, *shape):
            raise ValueError(
                f"values must be of shape (N, {self.channels}, {shape[0]}, {shape[1]}),"
                f" got {tuple(values.shape)}"
            )
        check_range("values", values)

    def nll(self, values: Tensor, parameters: Tensor) -> Tensor:
        """(N,) in nats, float32 or better."""
        wide = _wide(parameters)
        return discretized_mix_logistic(values.to(wide.dtype), wide)

    def draw(self, parameters: Tensor, seed: int, pixel: int, offset: int) -> Tensor:
        """Values (N, channels) of one pixel from its parameters (N, planes)."""
        return sample_discretized_mix_logistic(
            parameters, self.channels, seed, stream=pixel, sample_offset=offset
        )

    def empty(self, count: int, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Room for the values of `count` images."""
        return torch.zeros((count, self.channels, *shape), device=device)


def _wide(parameters: Tensor) -> Tensor:
    return parameters if parameters.dtype == torch.float64 else parameters.float()


Likelihood = Softmax | LogisticMixture


def bits_per_dim(nll: Tensor, dims: int) -> Tensor:
    """Nats an image as bits for each of its numbers."""
    return nll / (dims * math.log(2))
