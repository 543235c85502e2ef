"""Orthogonal regularisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonal_penalty(network: nn.Module) -> Tensor:
    """The sum over all layers of |W W' - diag(W W')|^2, a scalar, differentiable.

    Brock et al. 2018, "Large scale GAN training for high fidelity natural image synthesis", equation
    3: filters, the rows of W (outputs, all else), are kept at right angles and free in length.
    """
    grams = [_off_diagonal(p.flatten(1)).square().sum() for p in matrices(network)]
    return torch.stack(grams).sum()


@torch.no_grad()
def add_orthogonal_gradients(network: nn.Module, weight: float) -> None:
    """Adds the gradient of weight * `orthogonal_penalty` to every weight's `.grad`, which exists."""
    for p in matrices(network):
        if p.grad is not None:
            rows = p.flatten(1)
            p.grad.add_((_off_diagonal(rows) @ rows).reshape(p.shape), alpha=4 * weight)


def matrices(network: nn.Module) -> list[nn.Parameter]:
    """The weights of linear and convolutional layers that are trained, and their like."""
    return [p for p in network.parameters() if p.ndim > 1 and p.requires_grad]


def _off_diagonal(rows: Tensor) -> Tensor:
    gram = rows @ rows.t()
    return gram - gram.diagonal().diag_embed()
