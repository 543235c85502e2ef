"""The kernel distance: the squared maximum mean discrepancy under a cubic kernel.

    k(x, y) = (x . y / D + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Binkowski et al. 2018 (arXiv 1801.01401), who take the features x in D dimensions from an Inception
network and call it KID. The estimate is unbiased, so that sets of different sizes compare, and may
be below zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyfastgan.metrics.features import check_pair


def kernel_distance(
    features_a: Tensor,
    features_b: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The kernel distance between two sets of features, averaged over random subsets.

    Args:
        features_a: (N, D), floating point.
        features_b: (M, D).
        subsets: How many pairs of subsets, drawn without replacement within each.
        subset_size: Vectors in a subset; at most N and M are taken.
        seed: Of the subsets.

    Returns:
        The mean and the standard deviation over the subsets; zero where all subsets are the whole.

    Raises `TypeError` and `ValueError` as `frechet_distance` does, and `ValueError` for no subset
    or one of fewer than two vectors.
    """
    a, b = check_pair("features_a", features_a, "features_b", features_b)
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, not {subsets}")
    if subset_size < 2:
        raise ValueError(f"subset_size must be at least 2, not {subset_size}")
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        return _squared_mmd(a, b), 0.0
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor(
        [
            _squared_mmd(
                *(x[torch.randperm(len(x), generator=generator)[:size]] for x in (a, b)),
            )
            for _ in range(subsets)
        ],
        dtype=torch.float64,
    )
    return found.mean().item(), found.std(correction=0).item()


def _squared_mmd(a: Tensor, b: Tensor) -> float:
    within = [(_kernel(x, x).sum() - _diagonal(x).sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return (within[0] + within[1] - 2 * _kernel(a, b).mean()).item()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _diagonal(a: Tensor) -> Tensor:
    """The diagonal of the kernel's matrix."""
    return (a.square().sum(1) / a.shape[1] + 1) ** 3
