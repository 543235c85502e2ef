"""Pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyfastgan.training.grids import (
    image_grid,
    loss_picture,
    sample_picture,
    save_png,
    save_samples,
)


def test_every_image_stands_in_its_place_with_its_values() -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 40, 32)
    grid = image_grid(images, columns=2)
    assert grid.shape == (3 * 42 + 2, 2 * 34 + 2, 3)
    for i, grey in enumerate([0, 64, 128, 191, 255]):
        top, left = 2 + (i // 2) * 42, 2 + (i % 2) * 34
        assert (grid[top : top + 40, left : left + 32] == grey).all(), i
    assert (grid[-40:-2, -32:-2] == 255).all(), "an empty place is white"


def test_colours_keep_their_channels_and_wild_values_are_clipped() -> None:
    images = torch.stack([torch.full((64, 64), v) for v in (2.0, float("nan"), -3.0)])[None]
    assert image_grid(images)[10, 10].tolist() == [255, 0, 0]


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    image = torch.full((1, 1, 8, 8), -1.0)
    image[0, 0, 0, 1] = 1.0
    grid = image_grid(image)
    assert grid.shape == (36, 36, 3)
    assert (grid[2:6, 6:10] == 255).all()
    assert grid[2:34, 2:34].sum() == 16 * 3 * 255


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (0, 1, 8, 8), (4, 8, 8), (5, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        sample_picture(torch.zeros(shape))


def test_points_are_drawn_and_the_frame_is_the_datas() -> None:
    data = torch.randn(200, 2)
    near = torch.zeros(50, 2)
    stray = torch.cat([near[1:], torch.tensor([[1e3, 1e3]])])
    assert (sample_picture(near) != 255).any()
    # One point far outside changes nothing but itself.
    assert (sample_picture(near, data) == sample_picture(stray, data)).mean() > 0.99


def test_files_are_written_whole(tmp_path: Path) -> None:
    save_samples(torch.zeros(4, 3, 32, 32), tmp_path / "a" / "b.png")
    with Image.open(tmp_path / "a" / "b.png") as picture:
        assert picture.size == (70, 70)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


def test_loss_curves_show_each_loss(tmp_path: Path) -> None:
    history = [{"step": i, "a": float(i), "b": 2.0 if i % 2 else None} for i in range(8)]
    both = loss_picture(history, ["a", "b"])
    assert (both != loss_picture(history, ["a"])).any()
    save_png(both, tmp_path / "l.png")
    with Image.open(tmp_path / "l.png") as picture:
        assert np.array_equal(np.asarray(picture), both)
