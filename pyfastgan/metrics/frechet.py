"""The Fréchet distance between Gaussians fitted to two sets of features.

    d^2 = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

with the means m and the covariances S (divided by n - 1) of the features; Dowson and Landau 1982,
and for images Heusel et al. 2017 (arXiv 1706.08500), who take the features from an Inception
network. As is usual the squared distance is reported. It is biased upwards when there are few
samples, so compare only values with equal sample counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyfastgan.metrics.features import check_pair, extract, extractor_name


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """The squared Fréchet distance between the features (N, D) and (M, D) of two sets of samples.

    Computed in float64 on the CPU. With S = R^T R from a QR factorisation of the centred features,
    tr (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b^T: no matrix square root, so
    that a covariance without full rank (fewer samples than features) costs no accuracy.

    Raises `TypeError` for features that are not floating point, `ValueError` for another shape,
    fewer than two samples, different widths or values that are not finite.
    """
    a, b = check_pair("features_a", features_a, "features_b", features_b)
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    trace = root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return ((mean_a - mean_b).square().sum() + trace).clamp(min=0).item()


@dataclass(frozen=True)
class FID:
    """A Fréchet distance with the extractor that it was measured with and the two sample counts."""

    value: float
    extractor: str
    samples: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.extractor}; {self.samples[0]} against {self.samples[1]})"


def fid(
    images_a: Tensor,
    images_b: Tensor,
    extractor: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 256,
) -> FID:
    """The Fréchet distance between two sets of images on the features of `extractor`.

    Args:
        images_a: (N, ...) images as the extractor wants them.
        images_b: (M, ...) images of the same kind.
        extractor: Maps a batch of images to features (n, D). The result bears its `name`, or the
            name of the function or class. A module is put into evaluation mode for the while.
        batch_size: Images handed to the extractor at once.

    Raises `ValueError` for fewer than two images on a side or features that are not (n, D).
    """
    features = (
        extract("images_a", images_a, extractor, batch_size),
        extract("images_b", images_b, extractor, batch_size),
    )
    return FID(
        frechet_distance(*features), extractor_name(extractor), (len(images_a), len(images_b))
    )


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and a triangular root R of the covariance R^T R."""
    mean = features.mean(0)
    root = torch.linalg.qr(features - mean, mode="r").R
    return mean, root / (len(features) - 1) ** 0.5
