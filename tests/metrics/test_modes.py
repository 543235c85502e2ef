"""Modes counted by hand, and what a perfect sampler scores."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.stats import t

from pyfastgan import data
from pyfastgan.data import TOYS
from pyfastgan.metrics import ImageClassifier, count_modes, count_stacked_modes
from pyfastgan.metrics.modes import histogram_kl, mean_interval, stacked_labels


@pytest.mark.parametrize(("toy", "modes"), [("ring8", 8), ("grid25", 25)])
def test_a_perfect_sampler(toy: str, modes: int) -> None:
    """1 - exp(-9/2) of a round Gaussian lies within three sigma; 10,000 samples know it to 0.1 %."""
    found = count_modes(TOYS[toy].sample(10_000, seed=1), toy)
    assert (found.modes, found.of, found.samples) == (modes, modes, 10_000)
    assert found.high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.004)
    # The mean of KL of a histogram of N draws from K modes is (K - 1) / (2 N).
    assert found.kl == pytest.approx((modes - 1) / 20_000, abs=0.002)


def test_modes_by_hand() -> None:
    """Two samples at one mode, one just inside three sigma of another, one just outside of a third,
    one far away, and one that is not finite."""
    ring = TOYS["ring8"].modes
    assert ring is not None
    points = torch.stack(
        [
            ring[0],
            ring[0],
            ring[1] + torch.tensor([0.0299, 0.0]),
            ring[2] + torch.tensor([0.0, 0.0301]),
            5 * ring[2],
            torch.tensor([math.nan, 0.0]),
        ]
    )
    found = count_modes(points, "ring8")
    assert found.modes == 2
    assert found.high_quality == pytest.approx(3 / 6)
    # Of the five finite samples two are nearest to each of two modes.
    expected = sum(p * math.log(8 * p) for p in (2 / 5, 1 / 5, 2 / 5))
    assert found.kl == pytest.approx(expected)
    assert str(found) == "2 of 8 modes, 50.0% high quality, KL 1.025 (6 samples)"


def test_no_finite_sample() -> None:
    found = count_modes(torch.full((3, 2), math.inf), "grid25")
    assert (found.modes, found.high_quality) == (0, 0.0)
    assert math.isnan(found.kl)


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"toy must be one with modes \(8gaussians, ring8, .*'moons'"
    ):
        count_modes(torch.zeros(3, 2), "moons")
    with pytest.raises(ValueError, match=r"points must be of shape \(N, 2\).* got \(3, 3\)"):
        count_modes(torch.zeros(3, 3), "ring8")
    with pytest.raises(
        ValueError, match=r"images must be of shape \(N, 3, H, W\).* got \(0, 3, 8, 8\)"
    ):
        count_stacked_modes(torch.zeros(0, 3, 8, 8), None, torch.ones(10))


class Constant:
    """Sees in an image the digit that its first pixel stands for."""

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0, 0, 0] * 10).round().long()


def test_stacked_modes_by_hand() -> None:
    images = torch.zeros(4, 3, 2, 2)
    images[0, :, 0, 0] = torch.tensor([0.1, 0.2, 0.3])
    images[1, :, 0, 0] = torch.tensor([0.9, 0.0, 0.9])
    images[2] = images[1]
    assert stacked_labels(images, Constant()).tolist() == [123, 909, 909, 0]
    share = torch.arange(1.0, 11.0)
    found = count_stacked_modes(images, Constant(), share)
    assert (found.modes, found.of, found.high_quality) == (3, 1000, None)
    q = [2 * 3 * 4 / 55**3, 10 * 1 * 10 / 55**3, 1 / 55**3]
    expected = sum(p * math.log(p / r) for p, r in zip((0.25, 0.5, 0.25), q, strict=True))
    assert found.kl == pytest.approx(expected)


def test_the_data_reach_nearly_all_of_their_own_modes(tmp_path: Path) -> None:
    """26,000 stacked digits miss a mode with a chance of 1e-8; the classifier sees some wrongly."""
    single = data.load("digits", split="train")
    classifier = ImageClassifier(single, "digits")
    classifier.save(tmp_path / "classifier.safetensors")
    again = ImageClassifier(single, "digits", tmp_path / "classifier.safetensors")
    test = data.load("digits", split="test")
    assert classifier.accuracy(test) > 0.95
    assert torch.equal(classifier(test.tensors[0]), again(test.tensors[0]))
    stacked = data.load("stacked-digits", count=26_000, seed=3)
    images, labels = stacked[torch.arange(4000)]
    agree = (stacked_labels(images, again) == labels).double().mean()
    assert agree > 0.95
    frequencies = torch.bincount(single.tensors[1], minlength=10)
    found = count_stacked_modes(stacked[torch.arange(26_000)][0], again, frequencies)
    assert found.modes > 990
    assert found.kl < 0.05


def test_kl_and_intervals() -> None:
    assert histogram_kl(torch.tensor([3, 0, 1]), torch.tensor([1.0, 1.0, 2.0])) == pytest.approx(
        0.75 * math.log(3) + 0.25 * math.log(0.5)
    )
    for count in (2, 3, 5, 10):
        values = [float(k * k) for k in range(count)]
        mean, reach = mean_interval(values)
        expected = t.ppf(0.975, count - 1) * torch.tensor(values).std() / math.sqrt(count)
        assert mean == pytest.approx(sum(values) / count)
        assert reach == pytest.approx(float(expected), rel=1e-4)
    assert mean_interval([7.0]) == (7.0, 0.0)
