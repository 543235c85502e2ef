"""The crops of scikit-learn's photographs."""

from __future__ import annotations

import pytest
import torch
from sklearn import datasets

from pyfastgan.data import load


def test_crops_are_the_photographs_pixels() -> None:
    data = load("photos")
    # 25 rows and 39 columns of crops in each of two photographs of 427 x 640 pixels.
    assert (len(data), data.shape, data.classes) == (2 * 25 * 39, (3, 32, 32), 2)
    assert data.class_names == ("china", "flower")
    flower = torch.from_numpy(datasets.load_sample_image("flower.jpg").copy())
    index = 25 * 39 + 2 * 39 + 5  # row 2, column 5
    expected = flower[32:64, 80:112].permute(2, 0, 1)
    assert torch.equal(data.stored[0][index], expected)
    image, label = data[index]
    assert label == 1
    torch.testing.assert_close(image, expected / 127.5 - 1)
    assert load("photos", size=64).shape == (3, 64, 64)


def test_no_pixel_is_in_both_splits() -> None:
    """Told by the columns: each crop is looked up in a photograph whose pixels hold their
    column."""
    counts = {split: len(load("photos", size=128, split=split)) for split in ("train", "test")}
    # Columns of crops: 0, 16 ... 352 end before 480; 480 and 496, 512 end by 640. 19 rows, 2 photos.
    assert counts == {"train": 2 * 19 * 23, "test": 2 * 19 * 3}
    flower = torch.from_numpy(datasets.load_sample_image("flower.jpg").copy()).permute(2, 0, 1)
    train, test = (load("photos", size=128, split=split).stored[0] for split in counts)
    assert torch.equal(train[19 * 23 + 22], flower[:, :128, 352:480])
    assert torch.equal(test[19 * 3], flower[:, :128, 480:608])


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="size must be 8 to 128, got 129"):
        load("photos", size=129)
    with pytest.raises(TypeError, match=r"size must be an int, got 8\.0"):
        load("photos", size=8.0)
    with pytest.raises(ValueError, match="split must be one of all, train, test, got 'val'"):
        load("photos", split="val")
