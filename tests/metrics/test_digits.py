"""The classifier of digits: accurate on digits it has not seen, the same each time, a fair
extractor."""

from __future__ import annotations

import pytest
import torch

from pyfastgan import data
from pyfastgan.metrics import DigitsClassifier, digits_classifier, fid


@pytest.fixture(scope="module")
def held_out():
    return data.load("digits", size=8, split="test").tensors


def test_it_reads_digits_that_it_has_not_seen(held_out) -> None:
    images, labels = held_out
    classifier = digits_classifier(8)
    assert (classifier.predict(images) == labels).double().mean() > 0.95
    counts = classifier.count(images)
    assert len(counts) == 10
    assert sum(counts) == len(images)
    assert counts == torch.bincount(classifier.predict(images), minlength=10).tolist()


def test_the_features_are_those_behind_the_predictions(held_out) -> None:
    """The last layer on top of the features gives scikit-learn's own predictions."""
    classifier = digits_classifier(8)
    model = classifier._model
    features = classifier(held_out[0])
    assert features.shape == (len(held_out[0]), 64)
    assert features.dtype == torch.float64
    scores = features.numpy() @ model.coefs_[-1] + model.intercepts_[-1]
    assert (torch.from_numpy(scores.argmax(1)) == classifier.predict(held_out[0])).all()


def test_it_is_the_same_each_time(held_out) -> None:
    again = DigitsClassifier(8)
    assert again is not digits_classifier(8)
    assert torch.equal(again(held_out[0]), digits_classifier(8)(held_out[0]))


def test_digits_are_near_digits_and_far_from_noise(held_out) -> None:
    images = held_out[0]
    torch.manual_seed(0)
    classifier = digits_classifier(8)
    halves = fid(images[::2], images[1::2], classifier)
    noise = fid(torch.rand_like(images) * 2 - 1, images, classifier)
    missing = fid(images[held_out[1] != 3], images, classifier)
    assert halves.value < missing.value * 2 < noise.value
    assert "scikit-learn MLP on digits at 8 px" in str(halves)


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be of shape \(N, 1, 8, 8\), not \(2, 1, 16"):
        digits_classifier(8)(torch.zeros(2, 1, 16, 16))
