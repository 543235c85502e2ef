"""Which modes of a distribution samples reach: points by their distance, images by a classifier.

The measures are those of Srivastava et al. 2017 (VEEGAN) and Lin et al. 2018 (PacGAN).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyfastgan.data import TOYS
from pyfastgan.metrics.features import batches_of

# A round Gaussian has 1 - exp(-9/2), 98.9 %, of its mass within three sigma.
_RADIUS = 3.0


@dataclass(frozen=True)
class ModeCount:
    """What `count_modes` found.

    Args:
        modes: How many modes were reached.
        of: How many there are.
        high_quality: The share of samples within three sigma of a mode; None for images.
        kl: KL divergence of the samples' histogram over the nearest modes from the data's, nats; an
            infinite one cannot be, since the data have every mode.
        samples: How many samples were judged, those that are not finite among them.
    """

    modes: int
    of: int
    high_quality: float | None
    kl: float
    samples: int

    def __str__(self) -> str:
        quality = "" if self.high_quality is None else f", {self.high_quality:.1%} high quality"
        return (
            f"{self.modes} of {self.of} modes{quality}, KL {self.kl:.3f} ({self.samples} samples)"
        )


def count_modes(points: Tensor, toy: str) -> ModeCount:
    """Judge points by the modes of a mixture of equal round Gaussians.

    A sample is of high quality within three standard deviations of its nearest mode; a mode is
    reached if it is the nearest of one such sample. The histogram counts all finite samples by their
    nearest mode.

    Args:
        points: (N, 2), floating point.
        toy: A name of `pyfastgan.data.TOYS` that has modes: ring8, grid25 and others.

    Raises:
        ValueError: A toy without modes, or points of another shape, or none.
    """
    modal = [name for name, row in TOYS.items() if row.modes is not None]
    if toy not in modal:
        raise ValueError(f"toy must be one with modes ({', '.join(modal)}), got {toy!r}")
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"points must be of shape (N, 2) with N > 0, got {tuple(points.shape)}")
    centres, sigma = TOYS[toy].modes, TOYS[toy].sigma
    assert centres is not None
    assert sigma is not None
    total = len(points)
    points = points.detach().cpu().double()
    points = points[points.isfinite().all(1)]
    distance, nearest = torch.cdist(
        points, centres, compute_mode="donot_use_mm_for_euclid_dist"
    ).min(1)
    good = distance <= _RADIUS * sigma
    histogram = torch.bincount(nearest, minlength=len(centres))
    return ModeCount(
        int(nearest[good].unique().numel()),
        len(centres),
        float(good.sum()) / total,
        histogram_kl(histogram, torch.ones(len(centres))),
        total,
    )


def count_stacked_modes(images: Tensor, classifier: Any, frequencies: Tensor) -> ModeCount:
    """Judge images of three stacked digits, whose 1,000 modes are the digits of the channels.

    A mode is reached if one sample is classified so.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        classifier: `predict` maps (N, 1, H, W) to digits (N,).
        frequencies: How often the data have each digit, (10,): modes are as frequent as the product of
            their digits.

    Raises:
        ValueError: Images of another shape, or none.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(
            f"images must be of shape (N, 3, H, W) with N > 0, got {tuple(images.shape)}"
        )
    labels = torch.cat([stacked_labels(part, classifier) for part in batches_of(images, 1024)])
    histogram = torch.bincount(labels, minlength=1000)
    share = frequencies.double()
    product = torch.einsum("a,b,c->abc", share, share, share).flatten()
    return ModeCount(
        int((histogram > 0).sum()), 1000, None, histogram_kl(histogram, product), len(images)
    )


def stacked_labels(images: Tensor, classifier: Any) -> Tensor:
    """100 a + 10 b + c for the digits a, b, c that the channels show, int64 (N,)."""
    digits = classifier.predict(images.flatten(0, 1)[:, None]).reshape(len(images), 3)
    return digits @ torch.tensor([100, 10, 1])


def histogram_kl(histogram: Tensor, reference: Tensor) -> float:
    """KL(histogram, reference) of two sets of counts or weights (K,), nats; NaN for no counts.

    The reference must be above 0 wherever the histogram is.
    """
    p = histogram.double() / histogram.sum()
    q = reference.double() / reference.sum()
    return float(torch.where(p > 0, p * (p / q).log(), p).sum())


def mean_interval(values: list[float]) -> tuple[float, float]:
    """The mean, and how far its 95 % interval reaches on either side, by Student's t; 0 for one
    value."""
    found = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(found.mean()), 0.0
    error = float(found.std()) / math.sqrt(len(values))
    return float(found.mean()), _T95[min(len(values), len(_T95)) - 1] * error


# The 97.5 % quantile of Student's t for one value less than the place in the list.
_T95 = (math.inf, 12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
