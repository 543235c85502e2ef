"""The data of a run: what is trained on, and what is kept for testing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyfastgan import data as data_sets
from pyfastgan.data import TOYS, ImageData, MapData, TensorData
from pyfastgan.flow.config import FlowConfig
from pyfastgan.training.sampler import batches

DataSet = TensorData | ImageData | MapData
_BUILT_IN = ("digits", "photos")
_BATCH = 250
# Points of a toy's test, from another seed than those that are trained on.
TEST_POINTS, TEST_SEED = 20_000, 1


def training_part(name: str) -> str:
    """The name of what is trained on: of built-in images the training split, so that the other is left for testing."""
    return f"{name}:train" if name in _BUILT_IN else name


def load_data(data: Any, config: FlowConfig) -> DataSet:
    """What a run is trained on, after checking that it holds square images or points in the plane.

    Args:
        data: What the caller handed over; a name, or None, stands for the configuration's.
        config: Its `image_size` and `channels` are None for what the data have.
    """
    if data is not None and not isinstance(data, str):
        dataset = data_sets.load(data)
    elif config.data == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    else:
        dataset = data_sets.load_square(config.data, config.image_size)
    shape = dataset.shape
    if shape == (2,):
        return dataset
    size, channels = config.image_size or shape[-1], config.channels or shape[0]
    if len(shape) != 3 or shape != (channels, size, size):
        raise ValueError(
            f"data must be points in the plane, or images of shape ({config.channels or '1 or 3'}, {size}, {size}),"
            f" got items of shape {shape}; the configuration's channels and image_size say what is expected"
        )
    return dataset


def load_test(name: str, size: int | None) -> tuple[DataSet | None, str]:
    """What the model of a run is tested on, and what that is; None where nothing is kept."""
    kind, _, part = name.partition(":")
    if name in TOYS:
        return data_sets.load(name, count=TEST_POINTS, seed=TEST_SEED), f"new points of {name}"
    test_is = f"the test split of {name.removesuffix(':train')}"
    if kind in _BUILT_IN:
        return (
            (data_sets.load_square(f"{kind}:test", size), test_is)
            if part == "train"
            else (None, "")
        )
    if name == data_sets.OWN or not data_sets.has_splits(name):
        return None, ""
    return data_sets.load_square(name, size, split="test"), test_is


def batches_of(dataset: DataSet, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """All items in order, some at a time."""
    order = torch.arange(len(dataset)).split(_BATCH if len(dataset.shape) > 1 else 20 * _BATCH)
    return batches(dataset, order, device)


def some_items(dataset: DataSet, count: int) -> tuple[Tensor, ...]:
    """Items from all over the data, stacked: those of a folder or a file are often sorted."""
    index = torch.arange(min(count, len(dataset))) * max(1, len(dataset) // count)
    return next(batches(dataset, [index], torch.device("cpu")))  # type: ignore[arg-type]
