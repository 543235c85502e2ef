"""Files of numpy arrays: layouts, parts, ranges, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfastgan.data import has_splits, load

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)  # no two sizes alike
LABELS = np.array([0, 2, 1, 0, 2], dtype=np.uint8)


def saved(tmp_path: Path, **arrays: Any) -> str:
    np.savez(tmp_path / "data.npz", **arrays)
    return f"npz:{tmp_path / 'data.npz'}"


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (("images", "labels"), PIXELS),
        (("x", "y"), PIXELS.transpose(0, 3, 1, 2)),
        (("x_train", "y_train"), PIXELS),
        (("train_images", "train_labels"), PIXELS),
    ],
    ids=str,
)
def test_bytes_of_every_layout(tmp_path: Path, names: tuple[str, str], images: np.ndarray) -> None:
    data = load(saved(tmp_path, **{names[0]: images, names[1]: LABELS}))
    assert torch.equal(data.stored[0], torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert data.stored[1].tolist() == LABELS.tolist()
    assert (data.shape, data.classes, data.stored[1].dtype) == ((3, 6, 7), 3, torch.int64)


def test_grey_images_have_no_axis_for_it_and_labels_may_have_one_more(tmp_path: Path) -> None:
    data = load(saved(tmp_path, x=PIXELS[..., 0], y=LABELS[:, None].astype(np.int64)))
    assert torch.equal(data.stored[0][:, 0], torch.from_numpy(PIXELS[..., 0]))
    assert data.stored[1].tolist() == LABELS.tolist()
    assert load(saved(tmp_path, x=PIXELS[..., 0]), size=3).shape == (1, 3, 3)
    assert load(saved(tmp_path, x=PIXELS)).classes is None


def test_parts(tmp_path: Path) -> None:
    source = saved(tmp_path, x_train=PIXELS, x_test=PIXELS[:2], y_train=LABELS, y_test=LABELS[:2])
    assert has_splits(source)
    assert [len(load(source, split=split)) for split in ("train", "test")] == [5, 2]
    whole = saved(tmp_path, x=PIXELS)
    assert not has_splits(whole)
    with pytest.raises(
        ValueError, match="expected an array images_test or x_test or test_images or test_x, got x"
    ):
        load(whole, split="test")


def test_floats_need_a_range(tmp_path: Path) -> None:
    floats = RNG.random((5, 4, 4, 3))
    expected = torch.from_numpy(floats).permute(0, 3, 1, 2).mul(2).sub(1).float()
    stated = load(saved(tmp_path, x=floats, range=np.array([0, 1])))
    torch.testing.assert_close(stated.tensors[0], expected, atol=0, rtol=0)
    plain = saved(tmp_path, x=floats.astype(np.float32), y=LABELS)
    given = load(plain, value_range=(0, 1))
    torch.testing.assert_close(given.tensors[0], expected)
    assert given.tensors[1].tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match="are floats: an array `range` in the file"):
        load(plain)
    with pytest.raises(ValueError, match=r"must lie in 0 to 0\.5, got 0"):
        load(plain, value_range=(0, 0.5))
    with pytest.raises(ValueError, match=r"low < high, got \(1, 0\)"):
        load(plain, value_range=(1, 0))
    with pytest.raises(ValueError, match=r"floats of 4 x 4: only bytes are resized \(to 8\)"):
        load(plain, value_range=(0, 1), size=8)
    broken = floats.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="must lie in 0 to 1, got nan"):
        load(saved(tmp_path, x=broken), value_range=(0, 1))


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"z": PIXELS}, ValueError, "expected an array images or x or .*, got z"),
        ({}, ValueError, "got none"),
        ({"x": PIXELS, "y": LABELS[:4]}, ValueError, r"do not match its 5 images: .* \(4,\)"),
        ({"x": PIXELS, "y": LABELS / 2}, TypeError, "labels in .* must be integers, got float64"),
        ({"x": PIXELS, "y": LABELS.astype(int) - 1}, ValueError, "labels must not be negative"),
        ({"x": PIXELS[..., :2]}, ValueError, r"with C = 1 or 3, got \(5, 6, 7, 2\)"),
        ({"x": PIXELS[:, :3]}, ValueError, "can be read in two ways"),
        ({"x": PIXELS[:0]}, ValueError, "N > 0"),
        ({"x": PIXELS.astype(np.int32)}, TypeError, "must be uint8 or floats, got int32"),
        ({"x": np.array([{}])}, ValueError, "cannot read .*allow_pickle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        load(saved(tmp_path, **arrays))


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"npz:/none\.npz is no file"):
        load("npz:/none.npz")
    for content in (b"", b"PK\x03\x04 half a zip", b"\x93NUMPY", b"text"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*bad\.npz"):
            load(f"npz:{tmp_path / 'bad.npz'}")
    np.savez_compressed(tmp_path / "bad.npz", x=PIXELS)
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    content[200:210] = bytes(10)
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*bad\.npz"):
        load(f"npz:{tmp_path / 'bad.npz'}")
    np.save(tmp_path / "one.npy", PIXELS)
    with pytest.raises(ValueError, match=r"one\.npy: it is no npz file"):
        load(f"npz:{tmp_path / 'one.npy'}")
