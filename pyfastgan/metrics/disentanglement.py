"""How far single latent numbers stand for single factors of variation.

Codes are (N, D), what a model makes of N images, and factors int64 (N, F), what the images were drawn from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_BINS = 20


class DCI(NamedTuple):
    """Three scores of Eastwood & Williams, each at most 1.

    disentanglement  whether each latent number tells of one factor
    completeness     whether each factor is told of by one latent number
    informativeness  how well the factors are predicted: mean R^2 of data left out
    """

    disentanglement: float
    completeness: float
    informativeness: float


def beta_vae_score(
    codes: Tensor, factors: Tensor, *, votes: int = 1200, pairs: int = 64, seed: int = 0
) -> float:
    """Higgins et al. 2017, "beta-VAE", section 3: the accuracy with which a linear classifier tells which
    factor two images had in common, from the mean absolute difference of their codes.

    Args:
        codes: (N, D).
        factors: int64 (N, F).
        votes: Means to classify; two thirds are trained on, the others judge.
        pairs: In a mean.
        seed: Of the draws.

    Returns:
        1 at best, 1 / F for codes that say nothing.

    Raises:
        ValueError: Codes or factors of another shape, not finite, or a factor of one value.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, known = _checked(codes, factors)
    random = np.random.default_rng(seed)
    count = known.shape[1]
    # For each factor the images by their value, and where each value starts.
    orders = [np.argsort(column, kind="stable") for column in known.T]
    starts = [np.searchsorted(np.sort(column), np.unique(column)) for column in known.T]
    same = np.arange(votes) % count
    differences = np.empty((votes, values.shape[1]))
    for vote, factor in enumerate(same):
        start = starts[factor]
        which = random.integers(len(start), size=pairs)
        ends = np.append(start[1:], len(values))[which]
        picks = random.integers(start[which], ends, size=(2, pairs))
        first, second = values[orders[factor][picks]]
        differences[vote] = np.abs(first - second).mean(0)
    train = votes * 2 // 3
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(differences[:train], same[:train])
    return float(classifier.score(differences[train:], same[train:]))


def mutual_information_gap(codes: Tensor, factors: Tensor, *, bins: int = _BINS) -> float:
    """MIG, Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders", section 4.1:
    for each factor the difference between the largest and the second largest mutual information that a
    latent number has with it, in parts of the factor's entropy; the mean over factors.

    Args:
        codes: (N, D), D at least 2.
        factors: int64 (N, F).
        bins: Of equal width, that each latent number is rounded to.

    Raises:
        ValueError: As `beta_vae_score`; a single latent number, fewer than 2 bins.
    """
    values, known = _checked(codes, factors)
    if values.shape[1] < 2:
        raise ValueError("codes must have at least 2 numbers, for there to be a second largest")
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    rounded = [
        np.digitize(column, np.histogram_bin_edges(column, bins)[1:-1]) for column in values.T
    ]
    gaps = []
    for factor in known.T:
        shared = sorted(_mutual_information(column, factor) for column in rounded)
        gaps.append((shared[-1] - shared[-2]) / _mutual_information(factor, factor))
    return float(np.mean(gaps))


def dci(codes: Tensor, factors: Tensor, *, seed: int = 0) -> DCI:
    """Eastwood & Williams 2018, "A framework for the quantitative evaluation of disentangled
    representations", section 2, with random forests that predict each factor from the codes.

    Args:
        codes: (N, D).
        factors: int64 (N, F), at least 2 of them.
        seed: Of the forests, and of which third of the data is left out for the prediction.

    Raises:
        ValueError: As `beta_vae_score`; a single factor.
    """
    from sklearn.ensemble import RandomForestRegressor

    values, known = _checked(codes, factors)
    if known.shape[1] < 2:
        raise ValueError("factors must be at least 2, for codes to be entangled")
    order = np.random.default_rng(seed).permutation(len(values))
    train, test = np.split(order, [len(order) * 2 // 3])
    importance = np.zeros((values.shape[1], known.shape[1]))
    scores = []
    for k, factor in enumerate(known.T.astype(float)):
        forest = RandomForestRegressor(10, random_state=seed).fit(values[train], factor[train])
        importance[:, k] = forest.feature_importances_
        scores.append(max(0.0, forest.score(values[test], factor[test])))
    weights = importance.sum(1) / max(importance.sum(), 1e-12)
    return DCI(
        float((weights * _concentration(importance)).sum()),
        float(_concentration(importance.T).mean()),
        float(np.mean(scores)),
    )


def disentanglement(codes: Tensor, factors: Tensor) -> dict[str, float]:
    """All scores by name; the gap only where there is more than one latent number."""
    found = dci(codes, factors)
    scores = {"beta_vae_score": beta_vae_score(codes, factors)}
    if codes.shape[1] > 1:
        scores["mig"] = mutual_information_gap(codes, factors)
    return {**scores, **{f"dci_{name}": value for name, value in found._asdict().items()}}


def _checked(codes: Tensor, factors: Tensor) -> tuple[Any, Any]:
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or not codes.numel():
        raise ValueError(
            "codes must be of shape (N, D) and factors of shape (N, F),"
            f" got {tuple(codes.shape)} and {tuple(factors.shape)}"
        )
    if factors.dtype != torch.int64:
        raise ValueError(f"factors must be int64, got {factors.dtype}")
    if not codes.isfinite().all():
        raise ValueError("codes must be finite, got NaN or infinity")
    values, known = codes.detach().cpu().double().numpy(), factors.cpu().numpy()
    constant = [k for k, column in enumerate(known.T) if (column == column[0]).all()]
    if constant or not known.shape[1]:
        raise ValueError(f"every factor must vary, got one value of factor {constant}")
    return values, known


def _mutual_information(a: Any, b: Any) -> float:
    """In nats, of two columns of whole numbers, from their frequencies."""
    joint = np.zeros((len(np.unique(a)), len(np.unique(b))))
    index = (np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1])
    np.add.at(joint, index, 1 / len(a))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def _concentration(rows: Any) -> Any:
    """1 - the entropy of each row's shares, to the base of its length: 1 where one has it all."""
    share = rows / np.maximum(rows.sum(1, keepdims=True), 1e-12)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy = -(share * logs).sum(1) / np.log(max(rows.shape[1], 2))
    return np.where(rows.sum(1) > 0, 1 - entropy, 0)
