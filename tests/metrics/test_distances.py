"""Kernel distance, precision and recall, density and coverage, inception score: closed forms, slow
definitions, and torchmetrics on the same features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from pyfastgan.metrics import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Flat(nn.Module):
    """Bytes to features, as torchmetrics wants an extractor."""

    num_features = 48

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() / 64


def images(count: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high, (count, 3, 4, 4), dtype=torch.uint8)


def test_the_frechet_distance_is_torchmetrics() -> None:
    real, fake = images(300, 0, 256), images(200, 40, 256)
    peer = FrechetInceptionDistance(Flat(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    ours = frechet_distance(Flat()(real), Flat()(fake))
    assert ours == pytest.approx(peer.compute().item(), rel=1e-6)


def test_the_kernel_distance_is_torchmetrics() -> None:
    real, fake = images(150, 0, 256), images(150, 40, 256)
    peer = KernelInceptionDistance(Flat(), subsets=1, subset_size=150)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    ours, spread = kernel_distance(Flat()(real), Flat()(fake))
    assert ours == pytest.approx(peer.compute()[0].item(), rel=1e-6)
    assert spread == 0


def test_the_inception_score_is_torchmetrics() -> None:
    pictures = images(200, 0, 256)
    peer = InceptionScore(Flat(), splits=1)
    peer.update(pictures)
    ours, spread = inception_score(Flat()(pictures).softmax(1), splits=1)
    assert ours == pytest.approx(peer.compute()[0].item(), rel=1e-9)
    assert spread == 0


def slow_mmd(a: Tensor, b: Tensor) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    aa = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    bb = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return aa + bb - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def test_the_kernel_distance_by_its_definition() -> None:
    a, b = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64) + 0.3
    assert kernel_distance(a, b)[0] == pytest.approx(slow_mmd(a, b), rel=1e-12)
    # One feature of value a against value b: (a^2 + 1)^3 + (b^2 + 1)^3 - 2 (ab + 1)^3.
    a, b = torch.full((4, 1), 2.0), torch.full((4, 1), 1.0)
    assert kernel_distance(a, b)[0] == pytest.approx(125 + 8 - 2 * 27, rel=1e-12)


def test_subsets_are_averaged_unbiased_and_a_function_of_the_seed() -> None:
    a, b = torch.randn(400, 3), torch.randn(300, 3) + 0.5
    whole = slow_mmd(a[:60].double(), b[:60].double())
    mean, spread = kernel_distance(a, b, subsets=200, subset_size=60)
    assert mean == pytest.approx(whole, abs=4 * spread)
    assert spread > 0
    assert kernel_distance(a, b, subsets=200, subset_size=60) == (mean, spread)
    assert kernel_distance(a, b, subsets=200, subset_size=60, seed=1) != (mean, spread)
    # Of equal distributions the mean is zero: a biased estimate would be about tr/n = 0.2.
    same, spread = kernel_distance(torch.randn(3000, 3), torch.randn(3000, 3), subset_size=100)
    assert abs(same) < 4 * spread / 10


def slow_balls(features: np.ndarray, k: int) -> np.ndarray:
    """The radii by scikit-learn; the nearest neighbour of each is itself."""
    found = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(features)
    return found.kneighbors(features)[0][:, k]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_balls_by_their_definitions(k: int) -> None:
    """Sets that take several blocks of rows."""
    real, fake = torch.randn(1100, 4).double(), (torch.randn(700, 4) * 0.7 + 0.5).double()
    distances = np.linalg.norm(real.numpy()[:, None] - fake.numpy()[None], axis=2)
    r_real, r_fake = slow_balls(real.numpy(), k), slow_balls(fake.numpy(), k)
    precision = (distances <= r_real[:, None]).any(0).mean()
    recall = (distances <= r_fake[None]).any(1).mean()
    assert precision_recall(real, fake, k=k) == pytest.approx((precision, recall), abs=1e-12)
    density = (distances <= r_real[:, None]).sum() / (k * len(fake))
    coverage = (distances.min(1) <= r_real).mean()
    assert density_coverage(real, fake, k=k) == pytest.approx((density, coverage), abs=1e-12)
    assert precision != pytest.approx(recall, abs=0.05), "the case tells one from the other"


def test_identical_and_disjoint_sets() -> None:
    a = torch.randn(600, 16)
    assert precision_recall(a, a.clone()) == (1, 1)
    assert density_coverage(a, a.clone()).coverage == 1
    assert precision_recall(a, a + 100) == (0, 0)
    assert density_coverage(a, a + 100) == (0, 0)
    # One image again and again is within its own balls of no size.
    once = torch.randn(1, 16).expand(20, 16)
    assert precision_recall(once, once) == (1, 1)
    twice = torch.cat([a, a]) * 100 + 7
    assert precision_recall(twice, twice.flip(0), k=1) == (1, 1)


def test_a_toy_of_density_and_coverage() -> None:
    """Real points 0, 1, 2 ... 9 on a line, k = 1: every ball has radius 1."""
    real = torch.arange(10.0)[:, None]
    # 0.5 is in the balls of 0 and 1; 3 in those of 2, 3 and 4; 100 in none.
    assert density_coverage(real, torch.tensor([[0.5], [3.0], [100.0]]), k=1) == pytest.approx(
        (5 / 3, 5 / 10)
    )
    # An outlier among the real points has a large ball, which raises precision, not coverage.
    outlier = torch.cat([real, torch.tensor([[100.0]])])
    found = torch.tensor([[50.0], [51.0]])
    assert precision_recall(outlier, found, k=1).precision == 1
    assert density_coverage(outlier, found, k=1) == pytest.approx((1, 1 / 11))


def test_a_collapsed_generator_has_no_recall_and_one_of_half_the_modes_half() -> None:
    real = torch.cat([torch.randn(200, 2), torch.randn(200, 2) + 50])
    fake = torch.randn(400, 2)
    precision, recall = precision_recall(real, fake)
    assert precision > 0.9
    assert 0.4 < recall <= 0.5
    assert 0.4 < density_coverage(real, fake).coverage <= 0.5
    assert precision_recall(real, real[:1].expand(50, 2)) == (1, pytest.approx(1 / 400))


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_uniform_certainty_scores_the_number_of_classes(classes: int) -> None:
    certain = torch.eye(classes).repeat(30, 1)
    assert inception_score(certain, splits=10) == pytest.approx((classes, 0))
    assert inception_score(torch.full((20, classes), 1 / classes))[0] == pytest.approx(1, rel=1e-6)


def test_a_score_with_a_closed_form_and_parts() -> None:
    # Two thirds of the samples one class, one third another: exp of the entropy.
    certain = torch.eye(2)[[0, 0, 1] * 4]
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert inception_score(certain, splits=4) == pytest.approx((math.exp(entropy), 0))
    # In order: the first half scores 2, the second 1.
    parts = torch.eye(2)[[0, 1, 0, 1, 0, 0, 0, 0]]
    assert inception_score(parts, splits=2) == pytest.approx((1.5, 0.5))


def test_bad_arguments() -> None:
    good = torch.randn(10, 3)
    broken = good.clone()
    broken[0, 0] = math.inf
    for function, names in (
        (kernel_distance, ("features_a", "features_b")),
        (precision_recall, ("real", "samples")),
        (density_coverage, ("real", "samples")),
    ):
        with pytest.raises(TypeError, match=f"{names[0]} must be a floating-point tensor"):
            function(good.long(), good)
        with pytest.raises(ValueError, match=f"{names[1]} must be finite"):
            function(good, broken)
        with pytest.raises(ValueError, match=f"{names[1]} must be as wide as {names[0]}"):
            function(good, good[:, :2])
    for function in (precision_recall, density_coverage):
        for k in (0, 10):
            with pytest.raises(ValueError, match=rf"below the number of real \(10\), not {k}"):
                function(good, good, k=k)
    with pytest.raises(ValueError, match=r"below the number of samples \(3\), not 3"):
        precision_recall(good, good[:3], k=3)
    with pytest.raises(ValueError, match="subsets must be at least 1, not 0"):
        kernel_distance(good, good, subsets=0)
    with pytest.raises(ValueError, match="subset_size must be at least 2, not 1"):
        kernel_distance(good, good, subset_size=1)
    with pytest.raises(ValueError, match="each row must sum to 1"):
        inception_score(good)
    with pytest.raises(ValueError, match="each row must sum to 1"):
        inception_score(torch.full((4, 2), 0.4), splits=1)
    with pytest.raises(ValueError, match="each row must sum to 1"):
        inception_score(torch.full((4, 2), math.nan), splits=1)
    with pytest.raises(TypeError, match="must be a floating-point tensor"):
        inception_score(torch.eye(3).long())
    with pytest.raises(ValueError, match=r"splits must be 1 to the number of samples \(3\), not 4"):
        inception_score(torch.eye(3), splits=4)
    with pytest.raises(ValueError, match=r"shape \(N, K\), not \(3,\)"):
        inception_score(torch.ones(3))
