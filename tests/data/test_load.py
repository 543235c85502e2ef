"""`load`: names, options, and the caller's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn import datasets
from torch import Tensor

from pyfastgan.data import MapData, TensorData, descriptions, load, names


def test_digits_are_scikit_learns() -> None:
    data = load("digits")
    source = datasets.load_digits()
    images, labels = data.tensors
    assert (len(data), data.shape, data.classes) == (1797, (1, 8, 8), 10)
    assert torch.equal(images[:, 0], torch.from_numpy(source.images / 8 - 1).float())
    assert labels.tolist() == source.target.tolist()
    assert (images.min(), images.max()) == (-1, 1)
    image, label = data[5]
    assert torch.equal(image, images[5])
    assert label == source.target[5]


def test_larger_digits_are_resized_bilinearly() -> None:
    small, large = load("digits").tensors[0], load("digits", size=16).tensors[0]
    assert large.shape == (1797, 1, 16, 16)
    # Each pixel of the larger image weighs the two nearest of the small one 3 to 1, each way.
    s = small[7, 0]
    expected = (9 * s[2, 3] + 3 * s[2, 4] + 3 * s[3, 3] + s[3, 4]) / 16
    torch.testing.assert_close(large[7, 0, 5, 7], expected)
    assert load("digits", size=32).tensors[0].abs().max() <= 1


def test_the_split_is_fixed_disjoint_and_whole() -> None:
    whole, train, test = (load("digits", split=split) for split in ("all", "train", "test"))
    assert (len(train), len(test)) == (1200, 597)
    rows = [
        [tuple(image.flatten().tolist()) for image in part.tensors[0]] for part in (train, test)
    ]
    every = [tuple(image.flatten().tolist()) for image in whole.tensors[0]]
    assert sorted(rows[0] + rows[1]) == sorted(every)
    # Pinned: another split would make every published number incomparable.
    assert test.tensors[1][:12].tolist() == PINNED_LABELS
    assert torch.bincount(test.tensors[1]).min() >= 45, "every digit is in it"


PINNED_LABELS = [3, 9, 7, 8, 4, 6, 0, 8, 4, 2, 6, 5]


def test_loading_does_not_hand_out_shared_memory() -> None:
    load("digits").tensors[0].zero_()
    assert load("digits").tensors[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "digit",
            {},
            r"unknown data set 'digit'; did you mean 'digits'\? \(known: digits, photos, s",
        ),
        ("xyzzy", {}, r"unknown data set 'xyzzy' \(known: digits"),
        ("digits", {"siz": 16}, r"no option 'siz'; did you mean 'size'\? \(known: size, split\)"),
        ("ring8", {"size": 16}, r"'ring8' has no option 'size' \(known: count, seed\)"),
        ("digits", {"size": 4}, "size must be at least 8, got 4"),
        ("digits", {"split": "val"}, "split must be one of all, train, test, got 'val'"),
        ("ring8", {"count": 0}, "count must be at least 1, got 0"),
        ("ring8", {"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_names_and_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_options_of_another_type_are_named() -> None:
    with pytest.raises(TypeError, match=r"size must be an int, got 16\.0"):
        load("digits", size=16.0)
    with pytest.raises(TypeError, match="count must be an int, got True"):
        load("moons", count=True)


def test_tensors_pairs_and_data_sets_are_wrapped() -> None:
    images, labels = torch.rand(5, 3, 4, 4) * 2 - 1, torch.tensor([0, 1, 2, 1, 0])
    alone, pair = load(images), load((images, labels))
    assert (len(alone), alone.shape, alone.classes, len(alone[0])) == (5, (3, 4, 4), None, 1)
    assert (pair.classes, len(pair[0])) == (3, 2)
    assert load(alone) is alone

    class Own:
        classes = ("cat", "dog")

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return images[index], labels[index]

    own = load(Own())
    assert isinstance(own, MapData)
    assert (len(own), own.shape, own.classes, own.tensors) == (5, (3, 4, 4), 2, None)
    assert torch.equal(own[3][0], images[3])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), TypeError, r"must be float32 .*uint8"),
        (torch.zeros(4, 1, 8, 8).double(), TypeError, r"must be float32 .*float64"),
        (torch.full((4, 1, 8, 8), 255.0), ValueError, r"must lie in \[-1, 1\], got 255 to 255"),
        (torch.full((4, 1, 8, 8), float("nan")), ValueError, "must be finite"),
        (torch.zeros(4, 8, 8), ValueError, r"got shape \(4, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), ValueError, r"got shape \(0, 1, 8, 8\)"),
        ((torch.zeros(4, 2), torch.zeros(3).long()), ValueError, r"shape \(4,\), got \(3,\)"),
        ((torch.zeros(4, 2), torch.zeros(4)), TypeError, "labels must be int64"),
        ((torch.zeros(4, 2), -torch.ones(4).long()), ValueError, "must not be negative"),
        ((torch.zeros(4, 2),), TypeError, "two tensors"),
        (3, TypeError, "data must be a name, a tensor, .* got int"),
        ([], TypeError, "two tensors"),
        ({}, ValueError, "the data set is empty"),
        ({0: 3}, TypeError, "must be a tuple of tensors, .* got int"),
    ],
)
def test_bad_data_is_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(data)


def test_options_and_classes_must_fit() -> None:
    with pytest.raises(ValueError, match="options are for data sets by name, got size"):
        load(torch.zeros(4, 2), size=3)
    with pytest.raises(ValueError, match="labels must be below classes=2, got 4"):
        TensorData(torch.zeros(2, 2), torch.tensor([0, 4]), classes=2)
    with pytest.raises(ValueError, match="classes is 2 but there are no labels"):
        TensorData(torch.zeros(2, 2), classes=2)


def test_the_documentation_tables_every_name_with_its_entropy() -> None:
    table = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for name in names():
        assert f"| `{name}` |" in table, name
    assert set(descriptions()) == set(names())
    from pyfastgan.data import TOYS

    for toy in TOYS.values():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{toy.name}` |")]
        assert f"| {toy.entropy:.4f} |" in row, toy.name
