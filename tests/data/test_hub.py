"""Hugging Face data sets, made in memory and written to disk: no network."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pyfastgan.data import has_splits, load

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = [1, 0, 2, 1]


def png(pixels: np.ndarray) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(labels: list[int] = LABELS) -> datasets.Dataset:
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["a", "b", "c"]),
        }
    )
    columns = {"id": list(range(4)), "picture": [png(p) for p in PICTURES], "kind": labels}
    return datasets.Dataset.from_dict(columns, features)


def test_a_set_on_disk(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "set")
    data = load(f"hf:{tmp_path / 'set'}")
    assert torch.equal(data.stored[0], torch.from_numpy(PICTURES).permute(0, 3, 1, 2))
    assert (data.stored[1].tolist(), data.class_names) == (LABELS, ("a", "b", "c"))
    assert load(f"hf:{tmp_path / 'set'}", size=8).shape == (3, 8, 8)
    assert not has_splits(f"hf:{tmp_path / 'set'}")
    with pytest.raises(ValueError, match=r"no split 'test' \(known: train\)"):
        load(f"hf:{tmp_path / 'set'}", split="test")


def test_splits_on_disk(tmp_path: Path) -> None:
    parts = {"train": table(), "test": table().select([2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    assert len(load(f"hf:{tmp_path / 'set'}")) == 4
    assert load(f"hf:{tmp_path / 'set'}", split="test").stored[1].tolist() == [2]
    assert has_splits(f"hf:{tmp_path / 'set'}")
    with pytest.raises(ValueError, match=r"no split 'val' \(known: train, test\)"):
        load(f"hf:{tmp_path / 'set'}", split="val")


def test_a_set_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name and the split go to `load_dataset`; without labels there are none."""
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return table().remove_columns("kind")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["test", "train"])
    assert has_splits("hf:some/pictures")
    data = load("hf:some/pictures", split="test")
    assert asked == [("some/pictures", "test")]
    assert (len(data), data.classes) == (4, None)


def test_broken_cells_are_named_and_unlabelled_splits_refused(tmp_path: Path) -> None:
    rows = table().cast_column("picture", datasets.Image(decode=False)).to_dict()
    rows["picture"][0] = {"bytes": b"no image", "path": None}
    features = table().features
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "set")
    with pytest.warns(UserWarning, match=r"1 of 4 images in hf:.* row 0 \(no image"):
        data = load(f"hf:{tmp_path / 'set'}", size=8)
    assert data.stored[1].tolist() == [0, 2, 1]
    table([-1] * 4).save_to_disk(tmp_path / "test")
    with pytest.raises(ValueError, match="has no labels"):
        load(f"hf:{tmp_path / 'test'}")
    table().remove_columns("picture").save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no column of images \(columns: id, kind\)"):
        load(f"hf:{tmp_path / 'none'}")


def test_a_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, split: str = "") -> None:
        raise FileNotFoundError(f"no data set\n{name}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    for function in (load, has_splits):
        with pytest.raises(ValueError, match="cannot load hf:nobody/none: no data set nobody/none"):
            function("hf:nobody/none")
    with pytest.raises(ValueError, match="needs the name of a data set"):
        load("hf:")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match="hf:mnist needs the library `datasets`: pip install"
    ):
        load("hf:mnist")
