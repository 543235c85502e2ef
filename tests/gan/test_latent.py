"""Walks in the latent space."""

from __future__ import annotations

import math

import pytest
import torch

from pyfastgan.gan import interpolate


def test_ends_lengths_and_angles() -> None:
    torch.manual_seed(0)
    start, end = torch.randn(2, 4, 100, dtype=torch.float64)
    walk = interpolate(start, end, 7)
    assert walk.shape == (4, 7, 100)
    torch.testing.assert_close(walk[:, 0], start)
    torch.testing.assert_close(walk[:, -1], end)
    lengths = walk.norm(dim=2)
    torch.testing.assert_close(
        lengths.diff(dim=1), (lengths[:, -1:] - lengths[:, :1]).expand(4, 6) / 6
    )
    steps = torch.cosine_similarity(walk[:, 1:], walk[:, :-1], dim=2).acos()
    whole = torch.cosine_similarity(start, end, dim=1).acos()
    torch.testing.assert_close(steps, (whole / 6)[:, None].expand(4, 6))


def test_a_quarter_circle() -> None:
    walk = interpolate(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 3)
    torch.testing.assert_close(walk[0, 1], torch.full((2,), math.sqrt(2)))


def test_parallel_and_opposite_vectors_are_joined_by_a_line() -> None:
    start = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    end = torch.tensor([[3.0, 6.0], [-1.0, -2.0], [2.0, 2.0]])
    expected = torch.tensor([[2.0, 4.0], [0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(interpolate(start, end, 3)[:, 1], expected)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"of shape \(N, D\), not \(2, 3\) and \(2, 4\)"):
        interpolate(torch.zeros(2, 3), torch.zeros(2, 4), 5)
    with pytest.raises(ValueError, match="count must be at least 2, not 1"):
        interpolate(torch.zeros(2, 3), torch.zeros(2, 3), 1)
