"""Resampling by a filter against scipy, against its definition pixel by pixel, and what it does to frequencies."""

import math

import numpy as np
import pytest
import torch
from scipy import signal

import pyfastgan as pf
from pyfastgan.ops._registry import ops
from pyfastgan.testing import backends

BACKENDS = backends(ops()["upfirdn2d"])
pytestmark = pytest.mark.parametrize("backend", BACKENDS)
BINOMIAL = (0.125, 0.375, 0.375, 0.125)


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# (up, down, taps); an odd number of taps, more zeros than taps, and both directions at once.
@pytest.mark.parametrize(
    ("up", "down", "taps"),
    [
        (1, 1, (0.3, -1.0, 2.0)),
        (2, 1, BINOMIAL),
        (1, 2, BINOMIAL),
        (3, 2, (1.0, 2.0)),
        (2, 3, (1.0, 4.0, 2.0, 3.0, 0.5)),
    ],
)
def test_scipy_along_rows_and_columns(backend, up, down, taps):
    """scipy starts before the first pixel and keeps all that the filter reaches."""
    x = images(2, 3, 7, 41)  # vectors of pixels, and a rest
    expected = signal.upfirdn(
        taps, signal.upfirdn(taps, x.numpy(), up, down, axis=2), up, down, axis=3
    )
    before = len(taps) - 1
    with pf.use_backend(backend):
        ours = pf.ops.upfirdn2d(x, taps, up=up, down=down, padding=(before, before))
    height, width = (min(a, b) for a, b in zip(ours.shape[2:], expected.shape[2:], strict=True))
    assert height >= (7 * up) // down
    assert width >= (41 * up) // down
    np.testing.assert_allclose(
        ours[..., :height, :width].numpy(), expected[..., :height, :width], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("down", [1, 3])
@pytest.mark.parametrize("padding", [(2, 1), (0, 3), (-2, 4), (-1, -2)])
def test_the_definition_pixel_by_pixel(backend, padding, down):
    x, taps, up = images(1, 1, 5, 4), (1.0, -2.0, 0.5), 2
    with pf.use_backend(backend):
        ours = pf.ops.upfirdn2d(x, taps, up=up, down=down, padding=padding)
    sides = [size * up + sum(padding) for size in x.shape[2:]]
    wide = torch.zeros(*sides, dtype=torch.float64)
    for i, j in np.ndindex(5, 4):
        a, b = i * up + padding[0], j * up + padding[0]
        if 0 <= a < sides[0] and 0 <= b < sides[1]:
            wide[a, b] = x[0, 0, i, j]
    assert ours.shape[2:] == tuple((side - 3) // down + 1 for side in sides)
    for i, j in np.ndindex(*ours.shape[2:]):
        total = sum(
            taps[a] * taps[b] * wide[i * down + 2 - a, j * down + 2 - b]
            for a, b in np.ndindex(3, 3)
        )
        assert ours[0, 0, i, j].item() == pytest.approx(total.item(), abs=1e-12)


def test_enlarging_and_halving_keep_a_constant(backend):
    x, twice = torch.ones(1, 2, 8, 8), [2 * tap for tap in BINOMIAL]
    with pf.use_backend(backend):
        large = pf.ops.upfirdn2d(x, twice, up=2, padding=(2, 1))
        small = pf.ops.upfirdn2d(x, BINOMIAL, down=2, padding=(1, 1))
    assert large.shape == (1, 2, 16, 16)
    torch.testing.assert_close(large[..., 1:-1, 1:-1], torch.ones(1, 2, 14, 14))
    assert small.shape == (1, 2, 4, 4)
    torch.testing.assert_close(small[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


def test_the_highest_frequency_vanishes(backend):
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    with pf.use_backend(backend):
        blurred = pf.ops.upfirdn2d(board, BINOMIAL, padding=(0, 0))
    assert blurred.abs().max() < 1e-7


def test_the_layout_is_kept(backend):
    x = images(2, 5, 6, 6).contiguous(memory_format=torch.channels_last)
    with pf.use_backend(backend):
        assert pf.ops.upfirdn2d(x, BINOMIAL, padding=(2, 1)).is_contiguous(
            memory_format=torch.channels_last
        )
        assert pf.ops.upfirdn2d(x.contiguous(), BINOMIAL, padding=(2, 1)).is_contiguous()


def test_infinity_stays_where_it_is(backend):
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = math.inf
    with pf.use_backend(backend):
        y = pf.ops.upfirdn2d(x, (1.0, 1.0), padding=(1, 0))
    assert y.isinf().sum() == 4
    assert not y.isnan().any()
