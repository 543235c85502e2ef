"""Several metrics in one call, and the extractors that they are measured on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyfastgan import data
from pyfastgan.data import ImageData, MapData
from pyfastgan.metrics import (
    METRICS,
    Classifier,
    ImageClassifier,
    Inception,
    Pixels,
    density_coverage,
    digits_classifier,
    evaluate,
    extract,
    extractor_for,
    frechet_distance,
    halves,
    inception_score,
    kernel_distance,
    precision_recall,
    seen_in_training,
)
from pyfastgan.metrics.inception import WEIGHTS


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def short() -> Iterator[None]:
    """What the tests let a classifier learn is easy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyfastgan.metrics.classifier._STEPS", 80)
        yield


def test_scores_are_those_of_the_single_metrics() -> None:
    reference = data.load("digits", split="test")
    samples = data.load("digits", split="train").tensors[0][:300] * 0.8
    classifier = digits_classifier(8)
    found = evaluate(samples, reference, classifier)
    a, b = classifier(reference.tensors[0]), classifier(samples)
    assert list(found.scores) == list(METRICS)
    assert found.scores["fid"] == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert (found.scores["kid"], found.spreads["kid"]) == pytest.approx(kernel_distance(a, b))
    pairs = (*precision_recall(a, b), *density_coverage(a, b))
    assert [found.scores[name] for name in METRICS[2:6]] == pytest.approx(pairs)
    expected = inception_score(classifier.probabilities(samples))
    ours = (found.scores["inception-score"], found.spreads["inception-score"])
    # Batches of other sizes round otherwise.
    assert ours == pytest.approx(expected, rel=1e-6)
    assert (found.samples, found.reference, found.extractor) == (300, 597, classifier.name)
    text = str(found)
    assert "features: scikit-learn MLP on digits at 8 px" in text
    assert "300 samples against 597 real images" in text
    assert all(name in text for name in METRICS)


def test_some_metrics_on_pixels() -> None:
    images = torch.rand(30, 3, 4, 4) * 2 - 1
    assert list(evaluate(images, images, Pixels()).scores) == list(METRICS[:-1])
    found = evaluate(images, images + 0, Pixels(), metrics=["recall", "fid"])
    assert found.scores == {"fid": pytest.approx(0, abs=1e-9), "recall": 1}
    assert found.extractor == "raw pixels"
    for name, message in (
        ("fidd", "metrics must be one of fid, .* got 'fidd'; did you mean 'fid'"),
        ("inception-score", "needs a classifier as the extractor, 'raw pixels' gives no prob"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(images, images, Pixels(), metrics=[name])
    with pytest.raises(ValueError, match=r"of the real images, \(3, 4, 4\), not \(1, 4, 4\)"):
        evaluate(images[:, :1], images, Pixels())
    with pytest.raises(ValueError, match="metrics must name at least one"):
        evaluate(images, images, Pixels(), metrics=[])


def test_every_kind_of_data_set_gives_the_same_features() -> None:
    stored = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    held = ImageData(stored)
    images = stored.double().div(127.5).sub(1).float()
    expected = images.flatten(1)
    wrapped = MapData(torch.utils.data.TensorDataset(images))
    for source in (held, images, data.load(images), wrapped):
        torch.testing.assert_close(extract("images", source, Pixels(), 7), expected)


def coloured(count: int, seed: int) -> ImageData:
    """Two classes: a bright patch on the left or on the right."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (count,), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * int(label) : 4 * int(label) + 4] += 60
    return ImageData(images, labels)


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return ImageClassifier(coloured(300, 0), "patches")


def test_a_classifier_learns_and_is_the_same_each_time(classifier: ImageClassifier) -> None:
    test = coloured(200, 1)
    assert classifier.accuracy(test) > 0.97
    images = test[torch.arange(200)][0]
    probabilities = classifier.probabilities(images)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(200, dtype=torch.float64))
    assert torch.equal(probabilities.argmax(1), classifier.predict(images))
    assert classifier(images).shape == (200, 64)
    assert isinstance(classifier, Classifier)
    assert "CNN trained on 300 images of patches" in classifier.name
    state = torch.get_rng_state()
    again = ImageClassifier(coloured(300, 0), "patches")
    assert torch.equal(again(images), classifier(images))
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    with pytest.raises(ValueError, match=r"images must be of shape \('N', 3, 8, 8\), not \(2, 1"):
        classifier(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="labels of two classes or more, x has none"):
        ImageClassifier(ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)), "x")


def test_extractors_suit_their_data(tmp_path: Path, classifier: ImageClassifier) -> None:
    assert extractor_for("digits:train", 8) is digits_classifier(8)
    assert isinstance(extractor_for("digits", 8, "pixels"), Pixels)
    images, labels = coloured(300, 0).stored
    np.savez(tmp_path / "x.npz", x=images.numpy(), y=labels.numpy())
    found = extractor_for(f"npz:{tmp_path / 'x.npz'}", 8)
    assert found.accuracy(coloured(100, 2)) > 0.9
    assert "150 images" in found.name, "the training half alone"
    np.savez(tmp_path / "x.npz", x=images.numpy())
    assert isinstance(extractor_for(f"npz:{tmp_path / 'x.npz'}", 8), Pixels)
    with pytest.raises(ValueError, match="needs labels of two classes"):
        extractor_for(f"npz:{tmp_path / 'x.npz'}", 8, "classifier")
    with pytest.raises(ValueError, match=r"features must be one of auto, .*did you mean 'pixels'"):
        extractor_for("digits", 8, "pixel")


def test_halves(tmp_path: Path) -> None:
    train, test, what = halves("digits:train", 8)
    assert (len(train), len(test), what) == (1200, 597, "its test split")
    images, labels = coloured(31, 0).stored
    np.savez(tmp_path / "x.npz", x=images.numpy(), y=labels.numpy())
    name = f"npz:{tmp_path / 'x.npz'}"
    train, test, what = halves(name, 8)
    assert (len(train), len(test), what) == (16, 15, "a half of it")
    both = torch.cat([train.stored[0], test.stored[0]]).flatten(1).tolist()
    assert sorted(both) == sorted(images.flatten(1).tolist())
    for part in (train, test):
        for image, label in zip(*part.stored, strict=True):
            (place,) = (images == image).flatten(1).all(1).nonzero()[:, 0]
            assert labels[place] == label
    with pytest.raises(ValueError, match="'moons' has points, not images"):
        halves("moons", 8)


def test_what_was_seen_in_training(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 4, 4), np.uint8))
    whole = f"npz:{tmp_path / 'x.npz'}"
    np.savez(tmp_path / "y.npz", x_train=np.zeros((2, 4, 4)), x_test=np.zeros((2, 4, 4)))
    parts = f"npz:{tmp_path / 'y.npz'}"
    cases = {
        ("digits", "digits"): True,
        ("digits", "digits:all"): True,
        ("digits:test", "digits:train"): False,
        ("digits", "digits:test"): True,
        ("photos", "photos:train"): False,
        ("photos", "digits"): False,
        ("mnist:x", "mnist:x"): False,
        ("mnist:y", "mnist:x"): False,
        ("folder:x", "folder:x"): True,
        (whole, whole): True,
        (parts, parts): False,
    }
    for names, expected in cases.items():
        assert seen_in_training(*names) is expected, names


class Network(nn.Module):
    """Stands for torch-fidelity's: takes what that one takes, gives what it gives."""

    def __init__(self, name: str, features: list[str], *, feature_extractor_weights_path: str):
        super().__init__()
        assert features == ["2048", "logits_unbiased"]
        self.path = feature_extractor_weights_path

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return images.flatten(1).float(), images.float().mean((2, 3))


def test_inception_through_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="need torch-fidelity: pip install"):
        Inception()
    library = ModuleType(name)
    library.FeatureExtractorInceptionV3 = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=f"need the weights .*{WEIGHTS}, which are not there"):
        Inception()
    weights = tmp_path / "checkpoints" / WEIGHTS
    weights.parent.mkdir()
    torch.save({"call": sys.exit}, weights)
    with pytest.raises(ValueError, match="cannot read the weights"):
        Inception()
    torch.save({"w": torch.zeros(2)}, weights)
    inception = Inception()
    grey = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2)
    assert inception(grey).tolist() == [[0, 128, 255, 255] * 3]
    torch.testing.assert_close(
        inception.probabilities(grey), torch.full((1, 3), 1 / 3, dtype=torch.float64)
    )
    assert isinstance(inception, Classifier)
