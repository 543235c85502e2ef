"""Stacked digits: what each image is made of."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from pyfastgan import data


def test_channels_are_digits_of_the_label() -> None:
    single = data.load("digits", size=8)
    images, labels = single.tensors
    stacked = data.load("stacked-digits", count=40, seed=5)
    assert (len(stacked), stacked.shape, stacked.classes) == (40, (3, 8, 8), 1000)
    found, names = stacked[torch.arange(40)]
    for image, name in zip(found, names.tolist(), strict=True):
        for channel, digit in zip(image, map(int, f"{name:03}"), strict=True):
            # The nearest of the originals, but for the rounding to bytes.
            distance = (images[:, 0] - channel).abs().amax((1, 2))
            assert distance.min() < 0.005
            assert labels[distance.argmin()] == digit
    again, other = (data.load("stacked-digits", count=40, seed=s) for s in (5, 6))
    assert torch.equal(again.stored[0], stacked.stored[0])
    assert not torch.equal(other.stored[0], stacked.stored[0])
    assert len(data.load("stacked-digits:test", count=3)) == 3
    assert data.has_splits("stacked-digits")


def test_every_mode_is_there() -> None:
    labels = data.load("stacked-digits").stored[1]
    counts = torch.bincount(labels, minlength=1000)
    assert len(labels) == 128_000
    assert counts.min() > 50
    assert counts.max() < 250


def test_stacked_mnist(tmp_path: Path) -> None:
    pixels = torch.arange(20, dtype=torch.uint8).repeat_interleave(28 * 28).numpy().tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">4B3I", 0, 0, 8, 3, 20, 28, 28) + pixels
    )
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">4BI", 0, 0, 8, 1, 20) + bytes(k % 10 for k in range(20))
    )
    stacked = data.load(f"stacked-mnist:{tmp_path}", count=30)
    images, labels = stacked.stored
    assert images.shape == (30, 3, 28, 28)
    digits = images[:, :, 0, 0].long() % 10
    assert torch.equal(digits @ torch.tensor([100, 10, 1]), labels)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        data.load("stacked-digits", count=0)
    with pytest.raises(TypeError, match=r"seed must be an int, got 1\.5"):
        data.load("stacked-digits", seed=1.5)
    with pytest.raises(ValueError, match="did you mean 'count'"):
        data.load("stacked-digits", counts=3)
