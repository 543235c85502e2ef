"""The inception score: exp of the mean divergence of p(class | image) from p(class).

Salimans et al. 2016 (arXiv 1606.03498), who take the probabilities from an Inception network. It
lies between 1 and the number of classes: high when every image is clearly of one class and all
classes are equally frequent. It knows nothing of real images.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(probabilities: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """The mean and the standard deviation of the score over parts of the samples.

    Args:
        probabilities: (N, K) of a classifier; rows sum to 1.
        splits: Parts, cut in order; at most N.

    Raises `TypeError` for what is not floating point, `ValueError` for another shape, rows that
    are no probabilities, or a number of splits that is not from 1 to N.
    """
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point():
        raise TypeError("probabilities must be a floating-point tensor")
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise ValueError(f"probabilities must be of shape (N, K), not {tuple(probabilities.shape)}")
    if not 1 <= splits <= len(probabilities):
        raise ValueError(
            f"splits must be 1 to the number of samples ({len(probabilities)}), not {splits}"
        )
    p = probabilities.detach().cpu().double()
    if not (p >= 0).all() or not ((p.sum(1) - 1).abs() < 1e-3).all():
        raise ValueError("probabilities must not be negative, and each row must sum to 1")
    scores = torch.stack([_score(part) for part in p.tensor_split(splits)])
    return scores.mean().item(), scores.std(correction=0).item()


def _score(p: Tensor) -> Tensor:
    marginal = p.mean(0, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1).mean().exp()
