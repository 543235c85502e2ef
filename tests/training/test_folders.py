"""Folders of images of several sizes, which every family resizes."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gan", "dcgan"),
        ("flow", "realnvp"),
        ("vae", "autoencoder"),
        ("diffusion", "flow-matching"),
        ("autoregressive", "pixelcnn"),
    ],
)
def test_a_folder_of_several_sizes_is_trained_on(family: str, name: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    for i in range(4):
        shape = (18 + i, 20 - i, 3)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, shape, dtype=np.uint8)).save(
            tmp_path / "images" / f"{i}.png"
        )
    module = importlib.import_module(f"pyfastgan.{family}")
    fields = {"batch_size": 4, "steps": 1, "sample_count": 2, "width": 8, "accelerator": "cpu"}
    data, out = f"folder:{tmp_path / 'images'}", tmp_path / "r"
    with pytest.raises(ValueError, match=r"different sizes .* \(--image_size"):
        module.train(name, data=data, out=out, **fields)
    run = module.train(name, data=data, out=out, image_size=16, **fields)
    assert module.load(run).sample(2, seed=1).shape == (2, 3, 16, 16)
