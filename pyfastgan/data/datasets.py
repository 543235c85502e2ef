"""Map-style data sets whose items are tuples of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

# Rounding of bytes to floats and back.
_SLACK = 1e-3


class TensorData(Dataset[tuple[Tensor, ...]]):
    """Images or points held in memory, with labels or without.

    Args:
        images: float32 (N, C, H, W) in [-1, 1], or points float32 (N, D).
        labels: int64 (N,), or None.
        classes: Number of classes; by default the largest label + 1.

    Attributes:
        tensors: (images, labels or None).
        shape: Shape of one item's image.
        classes: Number of classes, or None without labels.

    Raises:
        TypeError, ValueError: Another dtype or shape, no items, values that are not finite or out
            of range.
    """

    def __init__(
        self, images: Tensor, labels: Tensor | None = None, *, classes: int | None = None
    ) -> None:
        _check_images(images)
        self.tensors = (images, labels)
        self.shape = tuple(images.shape[1:])
        self.classes = _count_classes(labels, classes, len(images))

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """`(image,)` or `(image, label)`."""
        images, labels = self.tensors
        return (images[index],) if labels is None else (images[index], labels[index])


class ImageData(Dataset[tuple[Tensor, ...]]):
    """Images held as bytes, which become floats a batch at a time.

    Args:
        images: uint8 (N, C, H, W), C = 1 or 3.
        labels: int64 (N,), or None.
        classes: Number of classes, or their names; by default the largest label + 1.
        skipped: What could not be read, as (name, reason).

    Attributes:
        stored: (images, labels or None).
        tensors: None: the images are not there as floats.
        shape: Shape of one item's image.
        classes: Number of classes, or None without labels.
        class_names: Where they are known, else None.
        skipped: As given.

    Raises:
        TypeError, ValueError: Another dtype or shape, no items, labels that do not match.
    """

    tensors = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        classes: int | Sequence[str] | None = None,
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
            raise ValueError(
                f"images must be (N, 1 or 3, H, W) with N > 0, got shape {tuple(images.shape)}"
            )
        named = classes is not None and not isinstance(classes, int)
        self.class_names = tuple(classes) if named else None  # type: ignore[arg-type]
        count = len(classes) if named else classes  # type: ignore[arg-type]
        self.stored = (images, labels)
        self.shape = tuple(images.shape[1:])
        self.classes = _count_classes(labels, count, len(images))  # type: ignore[arg-type]
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self.stored[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """`(image,)` or `(image, label)`, float32 in [-1, 1]; for a tensor of indices, a batch."""
        return tuple(to_float(part[index]) for part in self.stored if part is not None)


def to_float(stored: Tensor) -> Tensor:
    """Bytes as float32 in [-1, 1]; another tensor as it is."""
    return stored.float().div_(127.5).sub_(1) if stored.dtype == torch.uint8 else stored


class MapData(Dataset[tuple[Tensor, ...]]):
    """Someone else's map-style data set, with the attributes that trainers read.

    Args:
        dataset: Has `__len__` and `__getitem__`; items are tuples of tensors, the image first.

    Attributes:
        tensors: None: nothing is held in memory.
        shape: Shape of the first item's image.
        classes: `dataset.classes` where that is a number or a list of names, else None.

    Raises:
        TypeError, ValueError: No items, or items of another kind.
    """

    tensors = None

    def __init__(self, dataset: Any) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set is empty")
        item = dataset[0]
        if not isinstance(item, tuple) or not item or not isinstance(item[0], Tensor):
            raise TypeError(
                "an item of the data set must be a tuple of tensors, (image,) or (image, label),"
                f" got {type(item).__name__}"
            )
        _check_images(item[0][None])
        self.dataset = dataset
        self.shape = tuple(item[0].shape)
        named = getattr(dataset, "classes", None)
        self.classes = len(named) if isinstance(named, (list, tuple)) else named

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """The item as it is."""
        item: tuple[Any, ...] = self.dataset[index]
        return item


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.float32:
        raise TypeError(
            f"images must be float32 in [-1, 1], got {images.dtype}"
            " (bytes become that by images.float() / 127.5 - 1)"
        )
    if images.ndim not in (2, 4) or 0 in images.shape:
        raise ValueError(
            f"images must be (N, C, H, W), or points (N, D), got shape {tuple(images.shape)}"
        )
    if not torch.isfinite(images).all():
        raise ValueError("images must be finite, got NaN or infinity")
    if images.ndim == 4:
        check_range("images", images)


def check_range(name: str, images: Tensor) -> None:
    """Refuse images outside [-1, 1], NaN included. Looks where that makes no GPU wait."""
    if images.device.type == "cpu" and images.numel():
        low, high = (float(bound) for bound in images.detach().aminmax())
        if not -1 - _SLACK <= low <= high <= 1 + _SLACK:
            raise ValueError(f"{name} must lie in [-1, 1], got {low:.3g} to {high:.3g}")


def _count_classes(labels: Tensor | None, classes: int | None, count: int) -> int | None:
    """The number of classes, after checking the labels against it and the number of items."""
    if labels is None:
        if classes is not None:
            raise ValueError(f"classes is {classes} but there are no labels")
        return None
    _check_labels(labels, count)
    largest = int(labels.max()) + 1
    if classes is not None and classes < largest:
        raise ValueError(f"labels must be below classes={classes}, got {largest - 1}")
    return classes or largest


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), got {tuple(labels.shape)}")
    if labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {int(labels.min())}")
