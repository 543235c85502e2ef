"""Autoencoders without a likelihood: a code of a few numbers, the squared error, nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyfastgan.ops import random_normal

# Of the moving averages of the codes' moments.
_DECAY = 0.99


class Autoencoder(nn.Module):
    """decoder(encoder(x)), trained by the squared error.

    It has no distribution of codes. In training, moving averages of the codes' mean and second moments
    are kept, so that `sample` can draw codes from the normal distribution that has them.

    Args:
        encoder: Maps x (N, ...) to (N, latent_dim).
        decoder: Maps them back to x's shape.
        latent_dim: Numbers in a code.
    """

    steps: Tensor
    mean: Tensor
    moments: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.encoder, self.decoder, self.latent_dim = encoder, decoder, latent_dim
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("moments", torch.zeros(latent_dim, latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and its squared error summed over each sample, (N,)."""
        codes = self.encoder(x)
        if self.training:
            self._follow(codes.detach())
        made = self.decoder(codes)
        return made, (made - x).square().flatten(1).sum(1)

    @torch.no_grad()
    def _follow(self, codes: Tensor) -> None:
        self.steps += 1
        weight = torch.clamp(1 / self.steps, min=1 - _DECAY)
        codes = codes.to(self.mean.dtype)
        self.mean += weight * (codes.mean(0) - self.mean)
        self.moments += weight * (codes.T @ codes / len(codes) - self.moments)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """What the decoder makes of x's codes."""
        made: Tensor = self.decoder(self.encoder(x))
        return made

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Decodes codes drawn from a normal distribution with the mean and the covariance of those of
        the training data; sample i is the same for any count, up to rounding. Clamped to [-1, 1]."""
        mean = self.mean.double()
        values, vectors = torch.linalg.eigh(self.moments.double() - mean[:, None] * mean)
        shape = (count, self.latent_dim)
        noise = random_normal(shape, seed, dtype=torch.float64, device=mean.device)
        codes = mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T
        made: Tensor = self.decoder(codes.to(next(self.parameters()).dtype))
        return made.clamp(-1, 1)


def linear_autoencoder(features: int, latent_dim: int) -> Autoencoder:
    """One linear layer each way over (N, features).

    At the minimum of the squared error its decoder spans the space of the first `latent_dim` principal
    components (Baldi & Hornik 1989).
    """
    if not 1 <= latent_dim <= features:
        raise ValueError(f"latent_dim must lie in [1, features={features}], got {latent_dim}")
    encoder, decoder = nn.Linear(features, latent_dim), nn.Linear(latent_dim, features)
    return Autoencoder(encoder, decoder, latent_dim=latent_dim)
