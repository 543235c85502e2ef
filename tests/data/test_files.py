"""Image folders: pixels, classes, broken files, sizes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyfastgan.data import load

RNG = np.random.default_rng(0)


def colour(height: int = 6, width: int = 5) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "PNG"])
def test_a_flat_folder_keeps_every_pixel(tmp_path: Path, suffix: str) -> None:
    pictures = [colour() for _ in range(3)]
    for index, pixels in enumerate(pictures):
        save(pixels, tmp_path / f"{index}.{suffix}")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    data = load(f"folder:{tmp_path}")
    assert (len(data), data.shape, data.classes, data.skipped) == (3, (3, 6, 5), None, ())
    expected = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    assert torch.equal(data.stored[0], expected)
    (image,) = data[1]
    torch.testing.assert_close(image, expected[1] / 127.5 - 1)


def test_folders_are_classes_by_sorted_name(tmp_path: Path) -> None:
    save(colour(), tmp_path / "dog" / "a.png")
    save(colour(), tmp_path / "cat" / "deep" / "er" / "b.png")
    save(colour(), tmp_path / "cat" / "a.png")
    (tmp_path / ".cache").mkdir()
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("cat", "dog")
    assert data.stored[1].tolist() == [0, 0, 1]
    assert torch.equal(
        data.stored[0][2],
        torch.from_numpy(np.array(Image.open(tmp_path / "dog/a.png"))).permute(2, 0, 1),
    )


def test_grey_files_stay_grey_among_themselves_only(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (4, 4), dtype=np.uint8)
    deep = np.clip(grey.astype(int) * 257 - 100, 0, 65535).astype(np.uint16)
    save(grey, tmp_path / "a.png")
    save(deep, tmp_path / "b.png")
    save(grey > 127, tmp_path / "c.png")
    data = load(f"folder:{tmp_path}")
    assert data.shape == (1, 4, 4)
    assert torch.equal(data.stored[0][0, 0], torch.from_numpy(grey))
    assert torch.equal(data.stored[0][1], data.stored[0][0]), "16 bits become 8"
    assert torch.equal(data.stored[0][2, 0], torch.from_numpy(grey > 127).byte() * 255)
    save(colour(4, 4), tmp_path / "d.png")
    mixed = load(f"folder:{tmp_path}").stored[0]
    assert mixed.shape == (4, 3, 4, 4)
    assert torch.equal(mixed[0], torch.from_numpy(grey).expand(3, 4, 4))
    assert torch.equal(mixed[1], mixed[0])


def test_a_resize_takes_the_middle_square_as_pillow_resizes_it(tmp_path: Path) -> None:
    pixels = colour(40, 60)  # noise, whose values tell what is averaged
    save(pixels, tmp_path / "a.png")
    save(colour(12, 8), tmp_path / "b.png")
    data = load(f"folder:{tmp_path}", size=16)
    assert data.shape == (3, 16, 16)
    square = Image.fromarray(pixels).crop((10, 0, 50, 40))
    pillow = np.array(square.resize((16, 16), Image.Resampling.BILINEAR))
    ours = data.stored[0][0].permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - pillow).max() <= 1, "pillow rounds between its two passes"
    # Larger than the image: as pillow too.
    small = Image.open(tmp_path / "b.png").crop((0, 2, 8, 10))
    pillow = np.array(small.resize((16, 16), Image.Resampling.BILINEAR))
    ours = data.stored[0][1].permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - pillow).max() <= 1


def broken(folder: Path, count: int = 2) -> None:
    """Not an image at all, and one that ends in the middle."""
    (folder / "bad0.png").write_bytes(b"not an image")
    whole = folder / "whole.png"
    save(colour(64, 64), whole)
    for index in range(1, count):
        (folder / f"bad{index}.png").write_bytes(whole.read_bytes()[:3000])


def test_broken_files_are_left_out_and_named(tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.warns(
        UserWarning, match=r"2 of 3 images in the folder .* bad0\.png \(no image.*\), bad1"
    ) as seen:
        data = load(f"folder:{tmp_path}")
    assert len(seen) == 1
    assert [name for name, _ in data.skipped] == ["bad0.png", "bad1.png"]
    expected = np.array(Image.open(tmp_path / "whole.png"))
    assert torch.equal(data.stored[0], torch.from_numpy(expected).permute(2, 0, 1)[None])


def test_a_broken_file_shifts_no_label(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        broken(tmp_path / name)
    with pytest.warns(UserWarning, match="4 of 6"):
        data = load(f"folder:{tmp_path}")
    assert data.stored[1].tolist() == [0, 1]
    for index, name in enumerate(("a", "b")):
        whole = np.array(Image.open(tmp_path / name / "whole.png"))
        assert torch.equal(data.stored[0][index], torch.from_numpy(whole).permute(2, 0, 1))


def test_of_many_broken_files_some_are_named(tmp_path: Path) -> None:
    broken(tmp_path, 30)
    with pytest.warns(UserWarning, match=r"30 of 31 .* and 20 more$"):
        assert len(load(f"folder:{tmp_path}").skipped) == 30


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder:/none is no folder \(write folder:PATH\)"):
        load("folder:/none")
    with pytest.raises(ValueError, match="folder: is no folder"):
        load("folder:")
    with pytest.raises(ValueError, match="'folder' needs a place: folder:PLACE"):
        load("folder")
    with pytest.raises(ValueError, match=r"holds no image \(\.png"):
        load(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no image that can be read: a/x\.png"):
        load(f"folder:{tmp_path}")
    save(colour(6, 5), tmp_path / "a" / "one.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*/b holds no image"):
        load(f"folder:{tmp_path}")
    (tmp_path / "b" / "x.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="2 of 3"),
        pytest.raises(ValueError, match=r"no image of the class 'b' .* can be read"),
    ):
        load(f"folder:{tmp_path}")
    save(colour(7, 5), tmp_path / "b" / "two.png")
    with pytest.raises(
        ValueError, match=r"2 different sizes \(a/one.png is 6 x 5, b/two.png is 7 x 5"
    ):
        load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        load(f"folder:{tmp_path}", size=0)
    with pytest.raises(ValueError, match=r"no option 'split'"):
        load(f"folder:{tmp_path}", split="train")
    save(colour(), tmp_path / "loose.png")
    with pytest.raises(
        ValueError, match=r"holds images \(loose.png, ...\) beside folders of images \(a,"
    ):
        load(f"folder:{tmp_path}")


def test_good_folders_warn_of_nothing(tmp_path: Path) -> None:
    save(colour(), tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(f"folder:{tmp_path}", size=8)
