"""Networks for points in the plane: hidden layers with ReLU, three as in Gulrajani et al. 2017."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.dcgan import check_latent, draw_latents, draw_samples

HIDDEN_LAYERS = 3


class MLPGenerator(nn.Module):
    """Latent vectors (N, latent_dim) to points (N, dimension).

    Raises `ValueError` or `TypeError` for latent vectors of another shape or an integer dtype.
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        dimension: int = 2,
        width: int = 512,
        hidden_layers: int = HIDDEN_LAYERS,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.main = _layers(latent_dim, [width] * hidden_layers, dimension)

    def forward(self, latent: Tensor) -> Tensor:
        return self.main(check_latent(latent, self.latent_dim))

    def latents(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Normal latent vectors (count, latent_dim); vector i is the same for any count. See
        `pyfastgan.gan.latent.draw_normal` for their truncation."""
        return draw_latents(self, self.latent_dim, count, seed, truncation)

    @torch.no_grad()
    def sample(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Points (count, dimension); point i is the same for any count."""
        return draw_samples(self, self.latents(count, seed, truncation))


class MLPCritic(nn.Module):
    """Points (N, dimension) to scores (N,)."""

    def __init__(
        self, dimension: int = 2, *, width: int = 512, hidden_layers: int = HIDDEN_LAYERS
    ) -> None:
        super().__init__()
        self.main = _layers(dimension, [width] * hidden_layers, 1)

    def forward(self, points: Tensor) -> Tensor:
        return self.main(points).reshape(-1)


def _layers(inputs: int, widths: list[int], outputs: int) -> nn.Sequential:
    """Weights of variance 2 / fan-in before a ReLU (He et al. 2015), and biases of zero."""
    layers: list[Any] = []
    for before, after in itertools.pairwise([inputs, *widths]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear(widths[-1], outputs))
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
