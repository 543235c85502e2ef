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
from torch import Tensor, nn


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """The squared Fréchet distance between the features (N, D) and (M, D) of two sets of samples.

    Computed in float64 on the CPU. With S = R^T R from a QR factorisation of the centred features,
    tr (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b^T: no matrix square root, so
    that a covariance without full rank (fewer samples than features) costs no accuracy.

    Raises `TypeError` for features that are not floating point, `ValueError` for another shape,
    fewer than two samples, different widths or values that are not finite.
    """
    a, b = _check("features_a", features_a), _check("features_b", features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features_b must be as wide as features_a, which has {a.shape[1]} features, "
            f"not {b.shape[1]}"
        )
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
        _extract("images_a", images_a, extractor, batch_size),
        _extract("images_b", images_b, extractor, batch_size),
    )
    name = getattr(extractor, "name", None) or getattr(extractor, "__name__", None)
    return FID(
        frechet_distance(*features),
        name or type(extractor).__name__,
        (len(images_a), len(images_b)),
    )


def _extract(
    argument: str, images: Tensor, extractor: Callable[[Tensor], Tensor], batch_size: int
) -> Tensor:
    if len(images) < 2:
        raise ValueError(f"{argument} must hold at least two images, not {len(images)}")
    module = extractor if isinstance(extractor, nn.Module) and extractor.training else None
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            features = [extractor(batch) for batch in images.split(batch_size)]
    finally:
        if module is not None:
            module.train()
    if any(part.ndim != 2 for part in features):
        raise ValueError(
            f"extractor must give features of shape (n, D), not {tuple(features[0].shape)}"
        )
    return torch.cat(features)


def _check(name: str, features: Tensor) -> Tensor:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{name} must be a floating-point tensor, not {kind}")
    if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
        raise ValueError(
            f"{name} must be of shape (N, D) with N >= 2 and D >= 1, not {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinite values")
    return features.detach().cpu().double()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and a triangular root R of the covariance R^T R."""
    mean = features.mean(0)
    root = torch.linalg.qr(features - mean, mode="r").R
    return mean, root / (len(features) - 1) ** 0.5
