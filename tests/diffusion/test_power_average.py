"""Power-function averages: widths, weights, and profiles made after training."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pyfastgan.diffusion.power_average import (
    WIDTHS,
    PowerAverages,
    combination,
    decay,
    exponent,
    profile,
    reconstruct,
    save_snapshot,
)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.10, 0.25])
def test_widths_are_standard_deviations(width):
    g = exponent(width)
    assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(width, rel=1e-9)
    weights, s = profile(width, 20_000, 20_000), (np.arange(20_000) + 0.5) / 20_000
    mean = (weights * s).sum()
    assert weights.sum() == pytest.approx(1)
    assert math.sqrt((weights * (s - mean) ** 2).sum()) == pytest.approx(width, rel=1e-3)


def test_a_published_exponent():
    """Karras et al. 2024: gamma = 6.94 is 10%, 16.97 is 5%."""
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)


def walk(steps, snapshots, folder=None):
    """A layer that is moved at random, its averages, their snapshots, and its weights at each step."""
    torch.manual_seed(0)
    layer = nn.Linear(2, 3).double()
    averages = PowerAverages(layer)
    history = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            layer.weight.add_(torch.randn(3, 2).double())
        averages.update(layer, averages.networks, step)
        history.append(layer.weight.detach().clone())
        if folder is not None and step % snapshots == 0:
            save_snapshot(folder, averages.networks, step)
    return averages, torch.stack(history).flatten(1)


def test_averages_weigh_the_steps_as_their_profile_says():
    averages, history = walk(50, 10)
    for name, width in WIDTHS.items():
        expected = torch.from_numpy(profile(width, 50, 50)) @ history
        torch.testing.assert_close(averages.networks[name].weight.flatten().detach(), expected)
    assert decay(0.05, 1) == 0


def test_reconstruction_is_exact(tmp_path):
    """A profile that was stored is itself; with an average at every step the stored ones span all weights."""
    averages, history = walk(24, 1, tmp_path)
    for step in (24, 10):
        for width in (0.05, 0.07, 0.2):
            found = reconstruct(tmp_path, width, step)["weight"].flatten()
            expected = torch.from_numpy(profile(width, step, 24)) @ history
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    found = reconstruct(tmp_path, 0.10)["weight"]
    torch.testing.assert_close(found, averages.networks["width100"].weight.detach())
    factors = combination([(0.05, 10), (0.10, 10), (0.05, 20), (0.10, 20)], 0.10, 20)
    np.testing.assert_allclose(factors, [0, 0, 0, 1], atol=1e-10)


def test_a_profile_between_snapshots_is_near():
    """What is missed of a profile falls with the snapshots: eight miss up to 8%, for widths between the stored ones 2%;
    32 miss less than 1%."""

    def missed(width, count):
        stored = [(w, 1000 * k // count) for k in range(1, count + 1) for w in WIDTHS.values()]
        columns = np.stack([profile(*pair, 1000) for pair in stored], 1)
        wanted = profile(width, 1000, 1000)
        found = columns @ combination(stored, width, 1000)
        return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)

    for width in (0.06, 0.08, 0.15, 0.2):
        assert missed(width, 32) < 0.01
        assert missed(width, 8) < (0.02 if width < 0.1 else 0.08)


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"width of an average must lie in \(0, 0.28\], got 0.5"):
        exponent(0.5)
    with pytest.raises(ValueError, match="holds no stored averages"):
        reconstruct(tmp_path, 0.1)
    walk(4, 2, tmp_path)
    with pytest.raises(
        ValueError, match="step must be at least 2, the first that is stored, got 1"
    ):
        reconstruct(tmp_path, 0.1, 1)
    with pytest.raises(ValueError, match="width of an average"):
        reconstruct(tmp_path, -0.1)
