"""The data of a run: images, points, or the latent vectors of another family's run.

Families meet through files. The folder of a run that makes latent vectors holds `codes.safetensors`:

    train         floating point (N, dim), the vectors of the training images
    test          floating point (M, dim), of images held out; may be absent
    labels_train  int64 (N,), the classes of the training images; may be absent
    labels_test   int64 (M,); may be absent

and the run's family has `decode(run, vectors) -> images (N, C, H, W) in [-1, 1]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyfastgan import data as data_sets
from pyfastgan.data import ImageData, MapData, TensorData
from pyfastgan.training.sampler import batches

DataSet = TensorData | ImageData | MapData
FILE = "codes.safetensors"
_BUILT_IN = ("digits", "photos")


def training_part(name: str) -> str:
    """The name of what is trained on: of built-in data the training split, so that the other is left for testing."""
    return f"{name}:train" if name in _BUILT_IN else name


def load_data(data: Any, name: str, size: int | None, channels: int | None) -> DataSet:
    """What a run is trained on, after checking that it holds square images or vectors.

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
    if len(shape) == 1 and shape[0] > 1:
        return dataset
    colours = (1, 3) if channels is None else (channels,)
    if len(shape) != 3 or shape[0] not in colours or {*shape[1:]} != {size or shape[1]}:
        sizes = "H, H" if size is None else f"{size}, {size}"
        raise ValueError(
            f"data must be points (dim,) with dim > 1, or images of shape ({' or '.join(map(str, colours))}, {sizes}),"
            f" got items of shape {shape}; the configuration's channels and image_size say what is expected"
        )
    return dataset


def load_test(name: str, size: int | None) -> DataSet | None:
    """The test split of the data of that name, or None where there is none; fresh points of a toy."""
    kind, _, part = name.partition(":")
    if name in data_sets.TOYS:
        return data_sets.load(name, count=10_000, seed=1)
    if kind in _BUILT_IN:
        return data_sets.load_square(f"{kind}:test", size) if part == "train" else None
    if name == data_sets.OWN or not data_sets.has_splits(name):
        return None
    return data_sets.load_square(name, size, split="test")


def load_latents(run: str | Path) -> tuple[TensorData, TensorData | None]:
    """The latent vectors of a run's training images, and of those held out where it has them.

    Raises:
        ValueError: A folder without vectors, a file that cannot be read or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(run) / FILE
    if not path.is_file():
        raise ValueError(f"{run} holds no codes (it has no {FILE}): it must be an autoencoder's")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read the codes {path}: {error}") from None
    if "train" not in tensors:
        raise ValueError(f"{path} must hold `train`, got {', '.join(sorted(tensors)) or 'nothing'}")
    parts = []
    for name in ("train", "test"):
        if name not in tensors:
            continue
        found, labels = tensors[name], tensors.get(f"labels_{name}")
        if not found.is_floating_point() or found.ndim != 2 or 0 in found.shape:
            raise ValueError(
                f"{path}: {name} must be latent vectors, floating point (N, dim), got {found.dtype}"
                f" of shape {tuple(found.shape)}; indices of a codebook are for an autoregressive prior"
            )
        parts.append(TensorData(found.float(), labels))
    return parts[0], parts[1] if len(parts) > 1 else None


def some(dataset: DataSet, count: int) -> tuple[Tensor, ...]:
    """Items from all over the data, stacked: those of a folder or a file are often sorted."""
    index = torch.arange(min(count, len(dataset))) * max(1, len(dataset) // count)
    return next(batches(dataset, [index], torch.device("cpu")))  # type: ignore[arg-type]
