"""Images of two kinds: from folders, made of digits and photographs, in pairs or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyfastgan import data
from pyfastgan.data import PairData, UnpairedData, load


def save(path: Path, value: int, size: tuple[int, int] = (8, 8), *, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if grey else (*size, 3)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def pairs(root: Path, first: str = "A", second: str = "B") -> None:
    """Three pairs: the halves of one have the same brightness, and other suffixes."""
    for value, name in ((10, "x"), (20, "deep/y"), (30, "z")):
        save(root / first / f"{name}.png", value)
        save(root / second / f"{name}.bmp", value, grey=True)


def test_pairs_are_matched_by_name(tmp_path: Path) -> None:
    pairs(tmp_path)
    found = load(f"pairs:{tmp_path}")
    assert (len(found), found.shape, found.target_shape) == (3, (3, 8, 8), (1, 8, 8))
    for index in range(3):
        first, second = found[index]
        assert torch.equal(first[:1], second)
        assert first.dtype == torch.float32
    assert sorted(int(part[0, 0, 0]) for part in found.stored[0]) == [10, 20, 30]


def test_the_layout_with_training_and_test_folders(tmp_path: Path) -> None:
    pairs(tmp_path, "trainA", "trainB")
    save(tmp_path / "testA" / "t.png", 1)
    save(tmp_path / "testB" / "t.png", 2)
    assert len(load(f"pairs:{tmp_path}")) == 3
    assert len(load(f"pairs:{tmp_path}", split="test")) == 1
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        load(f"pairs:{tmp_path}", split="val")


def test_missing_halves_are_named(tmp_path: Path) -> None:
    pairs(tmp_path)
    save(tmp_path / "A" / "lonely.png", 1)
    save(tmp_path / "B" / "deep" / "alone.png", 1)
    says = (
        r"2 images in .* have no partner: A/lonely.png \(nothing in B\), "
        r"B/deep/alone.png \(nothing in A\)"
    )
    with pytest.raises(ValueError, match=says):
        load(f"pairs:{tmp_path}")
    for index in range(12):
        save(tmp_path / "A" / f"more{index}.png", 1)
    with pytest.raises(ValueError, match=r"14 images .* and 4 more"):
        load(f"pairs:{tmp_path}")


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no folder \(write pairs:PATH\)"):
        load(f"pairs:{tmp_path}/nowhere")
    with pytest.raises(ValueError, match="has no folders trainA and trainB nor A and B"):
        load(f"unpaired:{tmp_path}")
    save(tmp_path / "A" / "x.png", 1)
    with pytest.raises(ValueError, match="has A but no B"):
        load(f"pairs:{tmp_path}")
    (tmp_path / "B").mkdir()
    with pytest.raises(ValueError, match="B holds no image"):
        load(f"pairs:{tmp_path}")
    save(tmp_path / "B" / "x.png", 1)
    save(tmp_path / "B" / "x.bmp", 1)
    with pytest.raises(ValueError, match="holds two images x: "):
        load(f"pairs:{tmp_path}")


def test_differing_sizes_are_refused_or_resized(tmp_path: Path) -> None:
    pairs(tmp_path)
    save(tmp_path / "A" / "w.png", 1, (10, 8))
    save(tmp_path / "B" / "w.png", 1)
    with pytest.raises(ValueError, match=r"have 2 different sizes .* \(--image_size, or size="):
        load(f"pairs:{tmp_path}")
    assert load(f"pairs:{tmp_path}", size=6).shape == (3, 6, 6)
    (tmp_path / "A" / "w.png").unlink()
    (tmp_path / "B" / "w.png").unlink()
    for path in (tmp_path / "B").rglob("*.bmp"):
        save(path, 1, (12, 12))
    with pytest.raises(ValueError, match="must be of one size, got 8 x 8 and 12 x 12"):
        load(f"pairs:{tmp_path}")


def test_a_pair_with_a_broken_half_is_left_out(tmp_path: Path) -> None:
    pairs(tmp_path)
    (tmp_path / "B" / "x.bmp").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 3 images"):
        found = load(f"pairs:{tmp_path}")
    assert sorted(int(part[0, 0, 0]) for part in found.stored[0]) == [20, 30]
    assert torch.equal(found.stored[0][:, :1], found.stored[1])


def test_unpaired_folders_may_hold_different_numbers(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / "A" / f"{index}.png", index)
    save(tmp_path / "B" / "only.png", 9)
    found = load(f"unpaired:{tmp_path}")
    assert len(found) == 3
    assert [round(float((found[i][0][0, 0, 0] + 1) * 127.5)) for i in range(3)] == [0, 1, 2]
    assert all(torch.equal(found[i][1], found[0][1]) for i in range(3))


def test_digits2bold_is_the_inverted_and_thickened_digit() -> None:
    found = load("digits2bold", size=16, split="test")
    first, second = found.stored
    assert torch.equal(first, load("digits", size=16, split="test").tensors[0])
    # By hand: the brightest of the 3 x 3 pixels around one, negated.
    padded = torch.nn.functional.pad(first, (1, 1, 1, 1), value=-1)
    windows = torch.stack([padded[..., i : i + 16, j : j + 16] for i in range(3) for j in range(3)])
    assert torch.equal(second, -windows.amax(0))


def test_edges_are_black_where_brightness_steps() -> None:
    found = load("edges2photos", size=32, split="train")
    assert (found.shape, found.target_shape) == ((1, 32, 32), (3, 32, 32))
    edges, photos = found.stored
    assert torch.equal(photos, load("photos", size=32, split="train").stored[0])
    grey = photos.float().mean(1)
    step = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]).abs() / 2
    inner = edges[:, 0, 1:-1, 1:-1].float()
    assert inner[step < 1].mean() > 230
    assert inner[step > 110].mean() < 20
    black_and_white = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    black_and_white[..., 4:] = 255
    from pyfastgan.data.pairs import _edges

    expected = torch.full((8,), 255, dtype=torch.uint8)
    expected[3:5] = 0
    assert torch.equal(_edges(black_and_white)[0, 0], expected.expand(8, 8))


def test_the_halves_of_unpaired_data_share_no_pair() -> None:
    paired = PairData(*(torch.arange(7).float().div(7).view(7, 1, 1, 1).expand(-1, -1, 4, 4),) * 2)
    first, second = paired.unpaired().images
    assert len(first) == len(second) == 3
    assert not set(first[:, 0, 0, 0].tolist()) & set(second[:, 0, 0, 0].tolist())


def test_bad_images_are_refused() -> None:
    good = torch.zeros(2, 1, 4, 4)
    for first, second, says in (
        (good.double(), good, "first must be uint8, or float32"),
        (good, good[:, :, 0], r"second must be \(N, 1 or 3, H, W\)"),
        (good, good + 2, r"second must lie in \[-1, 1\], got 2 to 2"),
        (good, good * float("nan"), "second must lie in"),
        (good, good[:1], "must be as many, got 2 and 1"),
        (good, good[..., :2], "must be of one size, got 4 x 4 and 4 x 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            PairData(first, second)
    assert isinstance(load(UnpairedData(good, good[:1])), UnpairedData)
    assert set(data.descriptions()) == set(data.names())
