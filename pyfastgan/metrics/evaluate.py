"""How good samples are, in one call: several metrics on one named extractor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyfastgan import data as data_sets
from pyfastgan._names import check_choice
from pyfastgan.data import ImageData, TensorData
from pyfastgan.metrics.classifier import ImageClassifier
from pyfastgan.metrics.digits import digits_classifier
from pyfastgan.metrics.features import (
    Classifier,
    Extractor,
    Pixels,
    batches_of,
    extract,
    extractor_name,
)
from pyfastgan.metrics.frechet import frechet_distance
from pyfastgan.metrics.inception import Inception
from pyfastgan.metrics.inception_score import inception_score
from pyfastgan.metrics.kernel import kernel_distance
from pyfastgan.metrics.manifold import density_coverage, precision_recall

METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "inception-score")
FEATURES = ("auto", "classifier", "pixels", "inception")
_HALVES_SEED = 0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of samples, with what they were measured on.

    Args:
        scores: By the names of `METRICS`.
        spreads: Standard deviations, over subsets (kid) or parts (inception-score).
        extractor: The name of the feature extractor; figures of another one do not compare.
        samples: How many samples.
        reference: How many real images.
    """

    scores: dict[str, float]
    spreads: dict[str, float]
    extractor: str
    samples: int
    reference: int

    def __str__(self) -> str:
        lines = [
            f"{name:16}{value:12.5g}"
            + (f" +- {self.spreads[name]:.2g}" if name in self.spreads else "")
            for name, value in self.scores.items()
        ]
        counts = f"{self.samples} samples against {self.reference} real images"
        return "\n".join([*lines, f"features: {self.extractor}", counts])


def evaluate(
    samples: Tensor,
    reference: Any,
    extractor: Extractor | Callable[[Tensor], Tensor],
    *,
    metrics: Sequence[str] | None = None,
) -> Evaluation:
    """Measure samples against real images on the features of one extractor.

    Args:
        samples: (N, C, H, W) in [-1, 1].
        reference: Real images of the same shape: a tensor, or a data set of `pyfastgan.data`.
        extractor: Maps images to features (n, D); `extractor_for` has some. The inception score
            needs one with `probabilities`.
        metrics: Names of `METRICS`; by default all that the extractor allows.

    Raises `ValueError` for an unknown name, images of different shapes, an inception score of an
    extractor without probabilities, and what the single metrics refuse.
    """
    classifies = isinstance(extractor, Classifier)
    if metrics is None:
        metrics = METRICS if classifies else METRICS[:-1]
    for name in metrics:
        check_choice("metrics", name, METRICS)
    if not metrics:
        raise ValueError(f"metrics must name at least one of {', '.join(METRICS)}")
    if "inception-score" in metrics and not classifies:
        raise ValueError(
            "the inception score needs a classifier as the extractor,"
            f" {extractor_name(extractor)!r} gives no probabilities"
        )
    check_shapes(samples, reference)
    scores: dict[str, float] = {}
    spreads: dict[str, float] = {}
    if set(metrics) - {"inception-score"}:
        real = extract("reference", reference, extractor)
        fake = extract("samples", samples, extractor)
        if "fid" in metrics:
            scores["fid"] = frechet_distance(real, fake)
        if "kid" in metrics:
            scores["kid"], spread = kernel_distance(real, fake)
            spreads.update({"kid": spread} if spread else {})
        if {"precision", "recall"} & set(metrics):
            scores.update(precision_recall(real, fake)._asdict())
        if {"density", "coverage"} & set(metrics):
            scores.update(density_coverage(real, fake)._asdict())
    if "inception-score" in metrics:
        assert isinstance(extractor, Classifier)
        found = torch.cat([extractor.probabilities(batch) for batch in batches_of(samples, 256)])
        splits = min(10, len(samples))
        scores["inception-score"], spreads["inception-score"] = inception_score(
            found, splits=splits
        )
    return Evaluation(
        {name: scores[name] for name in METRICS if name in metrics},
        {name: spreads[name] for name in METRICS if name in metrics and name in spreads},
        extractor_name(extractor),
        len(samples),
        len(reference),
    )


def check_shapes(samples: Tensor, reference: Any) -> None:
    """Raises `ValueError` for samples (N, C, H, W) that are not of the shape of the real images."""
    shape = tuple(reference.shape[1:] if isinstance(reference, Tensor) else reference.shape)
    if tuple(samples.shape[1:]) != shape:
        raise ValueError(
            f"samples must be of the shape of the real images, {shape},"
            f" not {tuple(samples.shape[1:])}"
        )


def extractor_for(data: str, size: int, features: str = "auto") -> Any:
    """An extractor that suits a data set.

    Args:
        data: Name of the data set.
        size: Pixels a side.
        features: "classifier" (of the digits, or one trained on the training half of `halves`),
            "pixels", "inception", or "auto": the classifier where there are labels, else pixels.

    Raises `ValueError` for another name, and for a classifier of data without labels.
    """
    check_choice("features", features, FEATURES)
    if features == "pixels":
        return Pixels()
    if features == "inception":
        return Inception()
    if _whole(data) == "digits":
        return digits_classifier(size)
    train = halves(data, size)[0]
    if features == "auto" and train.classes in (None, 1):
        return Pixels()
    return ImageClassifier(train, data)


def halves(data: str, size: int) -> tuple[Any, Any, str]:
    """A training half and a half to judge by, of a data set by name.

    Returns:
        The two data sets, and what the second one is: the data set's own test split where it has
        one, or else every second of its images in a fixed random order.

    Raises `ValueError` for what `pyfastgan.data.load` refuses, and for points.
    """
    if data in data_sets.TOYS:
        raise ValueError(f"the data set {data!r} has points, not images")
    if data.partition(":")[0] in ("digits2bold", "edges2photos", "pairs", "unpaired"):
        raise ValueError(
            f"the data set {data!r} has images of two kinds: name one kind to compare with"
        )
    data = _whole(data)
    if data_sets.has_splits(data):
        train, test = (data_sets.load(data, size=size, split=part) for part in ("train", "test"))
        return train, test, "its test split"
    whole = data_sets.load(data, size=size)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(_HALVES_SEED))
    return _part(whole, order[::2]), _part(whole, order[1::2]), "a half of it"


def seen_in_training(data: str, trained_on: str) -> bool:
    """Whether the second of the `halves` of `data` was trained on, as far as the names tell.

    A run on "digits", "photos", a folder or a file without parts takes all of it; one on
    "digits:train", or on data with files of their own for training, takes the training split.
    """
    if _whole(data) != _whole(trained_on):
        return False
    if _whole(trained_on) in data_sets.BUILT_IN:
        return not trained_on.endswith(":train")
    return not data_sets.has_splits(trained_on)


def _whole(data: str) -> str:
    """The name without the split that a built-in data set may have behind it."""
    kind = data.partition(":")[0]
    return kind if kind in data_sets.BUILT_IN else data


def _part(data: Any, index: Tensor) -> TensorData | ImageData:
    images, labels = data.tensors or data.stored
    kept = None if labels is None else labels[index]
    kind = TensorData if data.tensors else ImageData
    return kind(images[index], kept, classes=data.classes)
