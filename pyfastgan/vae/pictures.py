"""Pictures of what a model makes of images and of its latent numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyfastgan.training import image_grid
from pyfastgan.vae.model import VAE

# How many images `pairs` takes, in rows of ten.
PAIRS = 50
_COLUMNS, _ROWS, _MANIFOLD = 10, 10, 20


def pairs(images: Tensor, made: Tensor) -> Any:
    """A picture: rows of images, each over a row of what was made of them."""
    rows = zip(images.split(_COLUMNS), made.split(_COLUMNS))
    return image_grid(torch.cat([part for pair in rows for part in pair]), columns=_COLUMNS)


def traversals(model: VAE, x: Tensor, labels: Tensor | None = None) -> Any:
    """A picture: on each row one latent number of the first x goes from -3 to 3. The rows are the ten
    numbers with the largest divergence over all x, the largest first."""
    with torch.no_grad():
        mean, logvar = model.encode(x, labels)
        kl = (mean.square() + logvar.exp() - 1 - logvar).mean(0)
        rows = kl.argsort(descending=True)[:_ROWS]
        z = mean[:1].expand(len(rows), _COLUMNS, -1).clone()
        for row, number in enumerate(rows.tolist()):
            z[row, :, number] = torch.linspace(-3, 3, _COLUMNS)
        z = z.flatten(0, 1)
        made = model.decode(z, None if labels is None else labels[:1].expand(len(z)))
    return image_grid(made, columns=_COLUMNS)


def manifold(model: VAE, label: int | None = None) -> Any:
    """A picture of two latent numbers, each at evenly spaced quantiles of the prior (Kingma & Welling
    2014, appendix A); a conditional model's is of one class.

    Raises `ValueError` for a model with another number of latent numbers.
    """
    if model.latent_dim != 2:
        raise ValueError(f"model must have latent_dim 2, got {model.latent_dim}")
    weight = next(model.parameters())
    quantiles = (
        torch.arange(_MANIFOLD, dtype=weight.dtype, device=weight.device) + 0.5
    ) / _MANIFOLD
    z = torch.cartesian_prod(*[torch.special.ndtri(quantiles)] * 2)
    labels = None if label is None else torch.full((len(z),), label, device=z.device)
    with torch.no_grad():
        made = model.decode(z, labels)
    return image_grid(made, columns=_MANIFOLD)
