"""The toys against their densities, and their entropies against quadrature and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from pyfastgan.data import TOYS, Toy, load

SAMPLES = 20_000


def quadrature(
    toy: Toy, low: tuple[float, float], high: tuple[float, float], nodes: int
) -> tuple[float, float]:
    """Mass and entropy of a density in a rectangle, by the midpoint rule."""
    sides = [
        lo + (torch.arange(nodes, dtype=torch.float64) + 0.5) * (hi - lo) / nodes
        for lo, hi in zip(low, high, strict=True)
    ]
    cell = math.prod((hi - lo) / nodes for lo, hi in zip(low, high, strict=True))
    log_density = toy.log_density(torch.cartesian_prod(*sides))
    density = log_density.exp()
    mass = density.sum() * cell
    entropy = -torch.where(density > 0, density * log_density, 0.0).sum() * cell
    return float(mass), float(entropy)


@pytest.mark.parametrize("toy", TOYS.values(), ids=lambda toy: toy.name)
def test_samples_have_the_stated_entropy(toy: Toy) -> None:
    """E[-log p] over samples is the entropy if they come from p, and larger if not."""
    surprise = -toy.log_density(toy.sample(SAMPLES, seed=1))
    assert torch.isfinite(surprise).all(), "a sample outside the support"
    error = float(surprise.std()) / math.sqrt(SAMPLES)
    assert abs(float(surprise.mean()) - toy.entropy) < 4 * error + 1e-9


@pytest.mark.parametrize(
    ("name", "low", "high", "nodes"),
    [
        ("checkerboard", (-6, -6), (6, 6), 240),
        ("8gaussians", (-6, -6), (6, 6), 160),
        ("moons", (-2, -1.5), (3, 2), 160),
        ("swissroll-wgan", (-2.3, -2.3), (2.3, 2.3), 200),
        ("ring8", (0.9, -0.1), (1.1, 0.1), 100),  # one mode of eight
    ],
)
def test_densities_integrate_to_one_and_to_the_entropy(
    name: str, low: tuple[float, float], high: tuple[float, float], nodes: int
) -> None:
    mass, entropy = quadrature(TOYS[name], low, high, nodes)
    parts = 8 if name == "ring8" else 1
    assert mass * parts == pytest.approx(1, abs=1e-8)
    assert entropy * parts == pytest.approx(TOYS[name].entropy, abs=6e-6)


def test_closed_forms() -> None:
    """Computed apart from the code: ln 32; ln K + ln(2 pi e s^2); two Gaussians in a row."""
    gaussian = math.log(2 * math.pi * math.e)
    expected = {
        "checkerboard": math.log(32),
        "funnel": gaussian + math.log(3),  # E[v / 2] = 0
        "ring8": math.log(8) + gaussian + 2 * math.log(0.01),
        "grid25": math.log(25) + gaussian + 2 * math.log(0.05),
        "8gaussians-wgan": math.log(8) + gaussian + 2 * math.log(0.02 / 1.414),
        "25gaussians-wgan": math.log(25) + gaussian + 2 * math.log(0.05 / 2.828),
    }
    for name, entropy in expected.items():
        assert TOYS[name].entropy == pytest.approx(entropy, abs=1e-12), name
    # These overlap a little; without overlap it would be ln 8 + ln(2 pi e / 8) = 2.8379.
    assert 2.8379 - 0.01 < TOYS["8gaussians"].entropy < 2.8379


@pytest.mark.parametrize(
    ("name", "count", "radius"),
    [("8gaussians", 8, 8**0.5), ("ring8", 8, 1.0), ("8gaussians-wgan", 8, 2 / 1.414)],
)
def test_rings_have_their_modes_and_radius(name: str, count: int, radius: float) -> None:
    toy = TOYS[name]
    assert toy.modes is not None
    assert toy.sigma is not None
    # A ring from linspace(0, 2 pi, 8) would have seven modes.
    assert len(torch.unique(toy.modes.mul(1e6).round(), dim=0)) == count
    torch.testing.assert_close(toy.modes.norm(dim=1), torch.full((count,), radius).double())
    nearest = torch.cdist(toy.modes, toy.modes).fill_diagonal_(9).amin(1)
    torch.testing.assert_close(nearest, nearest[0].expand(count))


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if toy.modes is not None])
def test_every_mode_gets_its_share_and_width(name: str) -> None:
    toy = TOYS[name]
    assert toy.modes is not None
    assert toy.sigma is not None
    points = toy.sample(SAMPLES, seed=2)
    distance, mode = torch.cdist(points, toy.modes).min(1)
    counts = torch.bincount(mode, minlength=len(toy.modes)).double()
    expected = SAMPLES / len(toy.modes)
    freedom = len(toy.modes) - 1
    assert (counts - expected).square().sum() / expected < freedom + 4 * math.sqrt(2 * freedom)
    # A perfect sampler has 1 - exp(-9/2) = 98.9 % of its points within 3 sigma of a mode.
    share = float((distance < 3 * toy.sigma).double().mean())
    assert share == pytest.approx(1 - math.exp(-4.5), abs=0.004)


def test_the_grid_and_the_squares_stand_where_they_should() -> None:
    modes = TOYS["grid25"].modes
    assert modes is not None
    assert sorted(map(tuple, modes.tolist())) == [
        (float(x), float(y)) for x in range(-4, 5, 2) for y in range(-4, 5, 2)
    ]
    inside = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [3.0, -1.0], [3.9, 3.9]], dtype=torch.float64)
    outside = torch.tensor([[1.0, -1.0], [3.0, 1.0], [4.1, 4.1]], dtype=torch.float64)
    board = TOYS["checkerboard"]
    assert torch.isfinite(board.log_density(inside)).all()
    assert torch.isinf(board.log_density(outside)).all()


def test_the_squares_are_filled_evenly() -> None:
    cells = (TOYS["checkerboard"].sample(SAMPLES, seed=2).floor() + 4).long()
    counts = torch.bincount(8 * cells[:, 0] + cells[:, 1], minlength=64).double()
    filled = counts[counts > 0]
    expected = SAMPLES / 32
    assert len(filled) == 32
    assert (filled - expected).square().sum() / expected < 31 + 4 * math.sqrt(2 * 31)


def test_points_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = load("moons", count=50, seed=3).tensors[0]
    torch.manual_seed(2)
    assert torch.equal(first, load("moons", count=50, seed=3).tensors[0])
    assert not torch.equal(first, load("moons", count=50, seed=4).tensors[0])
    assert first.dtype == torch.float32
