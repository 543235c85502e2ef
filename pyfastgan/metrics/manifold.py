"""Fidelity and diversity apart: how the balls around samples and real images overlap.

The manifold of a set of features is the union of the closed balls around each vector that reach to
its k-th nearest neighbour in the set.

- precision: the share of samples in the manifold of the real images; recall: the share of real
  images in the manifold of the samples (Kynkaanniemi et al. 2019, arXiv 1904.06991, k = 3).
- density: the number of real balls that a sample is in, over k, on average; coverage: the share of
  real balls that hold a sample (Naeem et al. 2020, arXiv 2002.09797, k = 5). Outliers among the
  samples do not raise them, and density may exceed 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyfastgan.metrics.features import check_pair

# Rows of the matrix of distances that are in memory at once.
_ROWS = 512


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density is at least 0, coverage in [0, 1]."""

    density: float
    coverage: float


def precision_recall(real: Tensor, samples: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of samples, from features (N, D) and (M, D).

    Distances are exact, in float64. Raises `TypeError` and `ValueError` for features as
    `frechet_distance` does, and `ValueError` unless 1 <= k < N, M.
    """
    real, samples = check_pair("real", real, "samples", samples)
    inside = _inside(real, samples, _radii("real", real, k))
    covered = _inside(samples, real, _radii("samples", samples, k))
    return PrecisionRecall(
        (inside > 0).double().mean().item(), (covered > 0).double().mean().item()
    )


def density_coverage(real: Tensor, samples: Tensor, *, k: int = 5) -> DensityCoverage:
    """Density and coverage of samples, from features (N, D) and (M, D).

    Arguments and errors are those of `precision_recall`.
    """
    real, samples = check_pair("real", real, "samples", samples)
    radii = _radii("real", real, k)
    density = _inside(real, samples, radii).double().mean() / k
    nearest = torch.cat([_distances(part, samples).amin(1) for part in real.split(_ROWS)])
    return DensityCoverage(density.item(), (nearest <= radii).double().mean().item())


def _radii(name: str, features: Tensor, k: int) -> Tensor:
    """The distance of each vector to its k-th nearest neighbour, itself not counted."""
    if not 1 <= k < len(features):
        raise ValueError(
            f"k must be at least 1 and below the number of {name} ({len(features)}), not {k}"
        )
    radii = []
    for start in range(0, len(features), _ROWS):
        distances = _distances(features[start : start + _ROWS], features)
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _inside(centres: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    """In how many of the balls each point is."""
    return torch.cat([(_distances(part, centres) <= radii).sum(1) for part in points.split(_ROWS)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not by a matrix product, which does not give equal vectors the distance 0.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
