"""Three digits in the channels of one image: 1,000 modes that a classifier can count.

The set-up is that of Metz et al. 2017 (unrolled GANs) and, with 128,000 images, of Lin et al. 2018
(PacGAN).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyfastgan.data.datasets import ImageData
from pyfastgan.data.digits import load_digits
from pyfastgan.data.mnist_cifar import load_mnist


def load_stacked_digits(
    *, size: int = 8, split: str = "all", count: int = 128_000, seed: int = 0
) -> ImageData:
    """scikit-learn's digits, stacked.

    Args:
        size, split: As for "digits".
        count: How many images, at least 1.
        seed: Key of the draws, with replacement.

    Returns:
        Images (count, 3, size, size), held as bytes, with labels 100 a + 10 b + c for the digits a, b, c of
        the channels.

    Raises:
        TypeError, ValueError: What "digits" refuses; a count or a seed that is no int or out of range.
    """
    images, labels = load_digits(size=size, split=split).tensors
    assert labels is not None
    stored = images.add(1).mul(127.5).round().clamp(0, 255).byte()
    return _stacked(stored, labels, count, seed)


def load_stacked_mnist(
    root: str,
    *,
    size: int | None = None,
    split: str = "train",
    count: int = 128_000,
    seed: int = 0,
) -> ImageData:
    """MNIST, stacked; otherwise as `load_stacked_digits`, from the files that "mnist:" reads."""
    images, labels = load_mnist(root, size=size, split=split).stored
    assert labels is not None
    return _stacked(images, labels, count, seed)


def _stacked(images: Tensor, labels: Tensor, count: int, seed: int) -> ImageData:
    for name, value, low in (("count", count, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(images), (count, 3), generator=generator)
    digits = labels[index] @ torch.tensor([100, 10, 1])
    return ImageData(images[:, 0][index], digits, classes=1000)
