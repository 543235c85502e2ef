"""Image data sets of the Hugging Face hub, or in its format on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

from pyfastgan.data.datasets import ImageData
from pyfastgan.data.files import Source, read_images
from pyfastgan.data.resize import check_size


def load_hub(where: str, *, size: int | None = None, split: str = "train") -> ImageData:
    """A data set by its name on the hub, through the library `datasets`.

    Args:
        where: The name, or a folder that `Dataset.save_to_disk` wrote.
        size: As for an image folder.
        split: The name of the split.

    Returns:
        The first column of images, held as bytes, with the first column of class labels where
        there is one.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        ValueError: No data set of that name, no such split, no column of images, and what an image
            folder raises.
    """
    if not where:
        raise ValueError("hf: needs the name of a data set (write hf:NAME)")
    check_size(size)
    datasets = _library(where)
    name = f"hf:{where}"
    table = _table(datasets, where, split)
    pictures = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
    labelled = {
        key: kind for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)
    }
    if not pictures:
        raise ValueError(f"{name} has no column of images (columns: {', '.join(table.features)})")
    label = next(iter(labelled), None)
    labels = None if label is None else list(table[label])
    if labels is not None and min(labels, default=0) < 0:
        raise ValueError(f"the split {split!r} of {name} has no labels (they are -1)")
    # Undecoded, so that broken images are found one by one.
    encoded = table.select_columns(pictures[0]).cast_column(
        pictures[0], datasets.Image(decode=False)
    )
    sources = [_source(encoded, pictures[0], index) for index in range(len(encoded))]
    if not sources:
        raise ValueError(f"the split {split!r} of {name} holds no image")
    names = None if label is None else labelled[label].names
    return read_images(sources, labels, names, size=size, where=name)


def has_test_split(where: str) -> bool:
    """Whether the data set has splits named train and test; errors as `load_hub`."""
    datasets, folder = _library(where), Path(where).expanduser()
    if _on_disk(folder):
        found = datasets.load_from_disk(str(folder))
        return isinstance(found, datasets.DatasetDict) and {"train", "test"} <= set(found)
    try:
        return {"train", "test"} <= set(datasets.get_dataset_split_names(where))
    except Exception as error:
        raise _cannot_load(where, error) from error


def _library(where: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"hf:{where} needs the library `datasets`: pip install datasets", name="pyfastgan.hub"
        ) from error
    return datasets


def _on_disk(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _cannot_load(where: str, error: Exception) -> ValueError:
    return ValueError(f"cannot load hf:{where}: {' '.join(str(error).split())}")


def _table(datasets: Any, where: str, split: str) -> Any:
    folder = Path(where).expanduser()
    try:
        if not _on_disk(folder):
            return datasets.load_dataset(where, split=split)
        found = datasets.load_from_disk(str(folder))
        parts = found if isinstance(found, datasets.DatasetDict) else {"train": found}
        if split not in parts:
            raise ValueError(f"no split {split!r} (known: {', '.join(parts)})")
        return parts[split]
    except Exception as error:  # of many kinds: no network, no such name, no such split
        raise _cannot_load(where, error) from error


def _source(table: Any, column: str, index: int) -> Source:
    def open_one() -> Path | IO[bytes]:
        cell = table[index][column]
        return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])

    return Source(f"row {index}", open_one)
