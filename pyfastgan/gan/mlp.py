"""The networks for points in the plane of Gulrajani et al. 2017: three hidden layers with ReLU."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.dcgan import check_latent, draw_latents, draw_samples

_HIDDEN = 3


class MLPGenerator(nn.Module):
    """Latent vectors (N, latent_dim) to points (N, dimension).

    Raises `ValueError` or `TypeError` for latent vectors of another shape or an integer dtype.
    """

    def __init__(self, latent_dim: int = 2, *, dimension: int = 2, width: int = 512) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.main = _layers(latent_dim, width, dimension)

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

    def __init__(self, dimension: int = 2, *, width: int = 512) -> None:
        super().__init__()
        self.main = _layers(dimension, width, 1)

    def forward(self, points: Tensor) -> Tensor:
        return self.main(points).reshape(-1)


def _layers(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Weights of variance 2 / fan-in before a ReLU (He et al. 2015), and biases of zero."""
    sizes = [inputs, *[width] * _HIDDEN]
    layers: list[Any] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear(width, outputs))
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
