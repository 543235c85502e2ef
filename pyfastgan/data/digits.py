"""The 1,797 handwritten digits of scikit-learn (UCI, Alpaydin and Kaynak 1998)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from pyfastgan.data.datasets import TensorData

TEST_COUNT = 597
_SPLIT_SEED = 1797


def load_digits(*, size: int = 8, split: str = "all") -> TensorData:
    """The digits as images.

    Args:
        size: Height and width; the originals have 8 pixels, larger ones are resized bilinearly.
        split: "all" (1,797), "train" (1,200) or "test" (597); the split is one fixed permutation.

    Returns:
        Images (N, 1, size, size): -1 is paper, 1 is ink (the original counts 0..16, over 8, minus
        1). Ten classes.

    Raises:
        ValueError: A size below 8, an unknown split.
        TypeError: A size that is no int.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size must be an int, got {size!r}")
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    images, labels = _originals()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    everything = torch.arange(len(images))
    parts = {"all": everything, "train": order[TEST_COUNT:], "test": order[:TEST_COUNT]}
    if split not in parts:
        raise ValueError(f"split must be one of {', '.join(parts)}, got {split!r}")
    images, labels = images[parts[split]], labels[parts[split]]
    if size != 8:
        images = functional.interpolate(images, (size, size), mode="bilinear")
    return TensorData(images, labels, classes=10)


@functools.cache
def _originals() -> tuple[Tensor, Tensor]:
    from sklearn import datasets

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float().div(8).sub(1)[:, None]
    return images, torch.from_numpy(digits.target).long()
