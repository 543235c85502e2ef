"""Autoencoders without a likelihood: a code of a few numbers, the squared error, nothing else."""

from __future__ import annotations

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """decoder(encoder(x)), trained by the squared error.

    Args:
        encoder: Maps x (N, ...) to (N, latent_dim).
        decoder: Maps them back to x's shape.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and its squared error summed over each sample, (N,)."""
        made = self.decoder(self.encoder(x))
        return made, (made - x).square().flatten(1).sum(1)


def linear_autoencoder(features: int, latent_dim: int) -> Autoencoder:
    """One linear layer each way over (N, features).

    At the minimum of the squared error its decoder spans the space of the first `latent_dim` principal
    components (Baldi & Hornik 1989).
    """
    if not 1 <= latent_dim <= features:
        raise ValueError(f"latent_dim must lie in [1, features={features}], got {latent_dim}")
    return Autoencoder(nn.Linear(features, latent_dim), nn.Linear(latent_dim, features))
