"""The data of a run: what is trained on, and what is kept for testing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyfastgan import data as data_sets
from pyfastgan.data import ImageData, MapData, TensorData
from pyfastgan.training.sampler import batches

ImageSet = TensorData | ImageData | MapData
_BATCH = 250


def training_part(name: str) -> str:
    """The name of what is trained on: of built-in data the training split, so that the other is left
    for testing."""
    return f"{name}:train" if name in data_sets.BUILT_IN else name


def load_images(data: Any, name: str, size: int | None, channels: int | None) -> ImageSet:
    """What a run is trained on, after checking that it holds square images.

    Args:
        data: What the caller handed over; a name, or None, stands for `name`.
        name: That of the configuration.
        size: Pixels a side, None as the data have.
        channels: None as the data have.
    """
    if data is not None and not isinstance(data, str):
        dataset = data_sets.load(data)
    elif name == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    else:
        dataset = data_sets.load_square(name, size)
    shape = dataset.shape
    colours = (1, 3) if channels is None else (channels,)
    if len(shape) != 3 or shape[0] not in colours or {*shape[1:]} != {size or shape[1]}:
        sizes = "H, H" if size is None else f"{size}, {size}"
        raise ValueError(
            f"data must be images of shape ({' or '.join(map(str, colours))}, {sizes}), got items of"
            f" shape {shape}; the configuration's channels and image_size say what is expected"
        )
    return dataset


def load_test(name: str, size: int) -> ImageSet | None:
    """The test split of the data of that name, or None where there is none."""
    kind, _, part = name.partition(":")
    if kind in data_sets.BUILT_IN:
        return data_sets.load_square(f"{kind}:test", size) if part == "train" else None
    if name == data_sets.OWN or not data_sets.has_splits(name):
        return None
    return data_sets.load_square(name, size, split="test")


def batches_of(dataset: ImageSet, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """All items in order, 250 at a time."""
    order = torch.arange(len(dataset)).split(_BATCH)
    return batches(dataset, order, device)


def some_images(dataset: ImageSet, count: int) -> tuple[Tensor, ...]:
    """Items from all over the data, stacked: those of a folder or a file are often sorted."""
    index = torch.arange(min(count, len(dataset))) * max(1, len(dataset) // count)
    return next(batches(dataset, [index], torch.device("cpu")))  # type: ignore[arg-type]
