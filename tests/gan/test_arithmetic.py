"""Latent arithmetic with a generator whose images are its latent vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyfastgan.gan import arithmetic, class_latents
from pyfastgan.gan.arithmetic import parse_terms
from pyfastgan.ops import random_normal


class Mirror(nn.Module):
    """Images (N, 1, 1, 4) that are the latent vectors."""

    def latents(self, count: int, seed: int) -> Tensor:
        return random_normal((count, 4), seed)

    def forward(self, latents: Tensor) -> Tensor:
        return latents[:, None, None]


def classify(images: Tensor) -> Tensor:
    """The quadrant of the first two numbers, 0 to 3."""
    positive = images[:, 0, 0, :2] > 0
    return positive[:, 0].long() + 2 * positive[:, 1].long()


def test_terms() -> None:
    assert parse_terms("7-1+4") == [(1, 7), (-1, 1), (1, 4)]
    assert parse_terms(" -12 + 3 ") == [(-1, 12), (1, 3)]
    for text in ("", "7", "7-", "7--1", "7*1", "a+b", "7 1", "7+1.5"):
        with pytest.raises(ValueError, match="arithmetic must be classes with"):
            parse_terms(text)


def test_latents_of_a_class_are_the_first_that_look_like_it() -> None:
    found = class_latents(Mirror(), classify, [0, 3], 500, seed=2)
    everything = random_normal((20_480, 4), 2)
    for label, rows in found.items():
        expected = everything[classify(everything[:, None, None]) == label][:500]
        assert torch.equal(rows, expected)
    with pytest.raises(ValueError, match="only 0 of 20480 samples look like class 9, 5 are needed"):
        class_latents(Mirror(), classify, [0, 9], 5)


def test_the_result_is_the_sum_of_means_of_three() -> None:
    images = arithmetic(Mirror(), classify, "3-1+0", columns=7, seed=1)
    assert images.shape == (4, 7, 1, 1, 4)
    torch.testing.assert_close(images[3], images[0] - images[1] + images[2])
    found = class_latents(Mirror(), classify, [3, 1, 0], 21, seed=1)
    for row, label in enumerate((3, 1, 0)):
        means = found[label].view(7, 3, 4).mean(1)
        torch.testing.assert_close(images[row, :, 0, 0], means)
    # Means keep to the side of their class; the second number of 3 - 1 + 0 changes its sign.
    assert (images[0, ..., :2] > 0).all()
    assert (images[2, ..., :2] < 0).all()


def test_a_class_twice_is_averaged_over_other_samples() -> None:
    images = arithmetic(Mirror(), classify, "2+2", columns=5)
    assert not torch.isclose(images[0], images[1]).any()
    torch.testing.assert_close(images[2], images[0] + images[1])


def test_bad_columns() -> None:
    with pytest.raises(ValueError, match="columns must be at least 1, not 0"):
        arithmetic(Mirror(), classify, "1+2", columns=0)
