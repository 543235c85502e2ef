"""What metrics are measured on: extractors that map images to vectors, and have a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate


class Extractor(Protocol):
    """Maps images (N, C, H, W) in [-1, 1] to features (N, D), floating point.

    Any callable will do; its `name` (or that of the function or class) stands beside the result.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """The features."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """An extractor that also says what it sees, which the inception score needs."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """The features."""
        ...

    def probabilities(self, images: Tensor) -> Tensor:
        """The probability of each class, (N, K)."""
        ...

    def predict(self, images: Tensor) -> Tensor:
        """The likeliest class, int64 (N,)."""
        ...


class Pixels:
    """The pixels themselves as features."""

    name = "raw pixels"

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, C H W)."""
        return images.flatten(1)


def extractor_name(extractor: Callable[[Tensor], Tensor]) -> str:
    """What to call the extractor beside a result."""
    name = getattr(extractor, "name", None) or getattr(extractor, "__name__", None)
    return name or type(extractor).__name__


def extract(
    argument: str, images: Any, extractor: Callable[[Tensor], Tensor], batch_size: int = 256
) -> Tensor:
    """Features (N, D) of a tensor of images, or of a data set, a batch at a time.

    A module is put into evaluation mode for the while. Raises `ValueError`, naming the argument,
    for fewer than two images and for features of another shape.
    """
    if len(images) < 2:
        raise ValueError(f"{argument} must hold at least two images, not {len(images)}")
    module = extractor if isinstance(extractor, nn.Module) and extractor.training else None
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            features = [extractor(batch) for batch in batches_of(images, batch_size)]
    finally:
        if module is not None:
            module.train()
    if any(part.ndim != 2 for part in features):
        raise ValueError(
            f"extractor must give features of shape (n, D), not {tuple(features[0].shape)}"
        )
    return torch.cat(features)


def check_features(name: str, features: Tensor) -> Tensor:
    """The features in float64 on the CPU, after checking them."""
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


def check_pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two checked sets of features of one width."""
    a, b = check_features(name_a, a), check_features(name_b, b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name_b} must be as wide as {name_a}, which has {a.shape[1]} features, "
            f"not {b.shape[1]}"
        )
    return a, b


def batches_of(images: Any, batch_size: int) -> Iterator[Tensor]:
    """The images of a tensor or a data set as float batches; labels are left out."""
    held = getattr(images, "tensors", None)
    if isinstance(images, Tensor) or held is not None:
        yield from (images if held is None else held[0]).split(batch_size)
        return
    indices = torch.arange(len(images)).split(batch_size)
    if hasattr(images, "stored"):
        yield from (images[index][0] for index in indices)
    else:
        yield from (default_collate([images[i][0] for i in index.tolist()]) for index in indices)
