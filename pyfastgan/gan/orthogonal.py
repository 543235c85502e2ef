"""Orthogonal regularisation of weights in the form of Brock et al. 2019, equation 3.

R(W) = strength |W W' * (1 - I)|^2 with the Frobenius norm and a product of elements: the rows of W, a
filter each, are to be orthogonal, while their lengths are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonal_penalty(weights: Iterable[Tensor]) -> Tensor:
    """The sum over weights (out, ...) of |W W' * (1 - I)|^2, a scalar; differentiable."""
    values = []
    for weight in weights:
        rows = weight.flatten(1)
        # |W W'| = |W' W|: the smaller product, without the squares on its diagonal.
        product = rows @ rows.mT if len(rows) <= rows.shape[1] else rows.mT @ rows
        values.append(product.square().sum() - rows.square().sum(1).square().sum())
    if not values:
        raise ValueError("weights must hold at least one")
    return torch.stack(values).sum()


@torch.no_grad()
def add_orthogonal_gradients(weights: Iterable[Tensor], strength: float) -> None:
    """Add the gradient of strength times `orthogonal_penalty` to the weights' `.grad`, which is there:
    4 strength (W W' * (1 - I)) W, without a graph, nor a matrix larger than the weight."""
    for weight in weights:
        if weight.grad is None:
            continue
        rows = weight.flatten(1)
        lengths = rows.square().sum(1, keepdim=True)
        if len(rows) <= rows.shape[1]:
            turned = (rows @ rows.mT) @ rows
        else:
            turned = rows @ (rows.mT @ rows)
        found = torch.addcmul(turned, lengths, rows, value=-1).view_as(weight)
        weight.grad.add_(found.to(weight.grad.dtype), alpha=4 * strength)
