"""Two-dimensional distributions with known densities. `docs/data.md` tables them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyfastgan.data.datasets import TensorData

_LOG_2PI = math.log(2 * math.pi)
_DENSITY_CHUNK = 1024  # points whose distances to all centres are in memory at once


@dataclass(frozen=True)
class Toy:
    """A distribution over the plane.

    Args:
        name: What `pyfastgan.data.load` calls it.
        formula: How a point is drawn, in words.
        entropy: Differential entropy in nats.
        draw: (count, generator) -> points (count, 2), float64.
        log_density: points (N, 2) float64 -> nats (N,), float64; -inf outside the support.
        modes: Centres of the modes (K, 2), where the density is a mixture of `sigma`-wide round
            Gaussians.
        sigma: That width.
    """

    name: str
    formula: str
    entropy: float
    draw: Callable[[int, torch.Generator], Tensor]
    log_density: Callable[[Tensor], Tensor]
    modes: Tensor | None = None
    sigma: float | None = None

    def sample(self, count: int, seed: int) -> Tensor:
        """`count` independent points, float64 (count, 2), a function of the seed."""
        return self.draw(count, torch.Generator().manual_seed(seed))


def load_toy(toy: Toy, *, count: int = 100_000, seed: int = 0) -> TensorData:
    """Points of a toy, held in memory.

    Args:
        toy: Which one.
        count: How many, at least 1.
        seed: Key of the points.

    Returns:
        float32 points (count, 2), no labels.

    Raises:
        TypeError, ValueError: A count or a seed that is no int or out of range.
    """
    for name, value, low in (("count", count, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    return TensorData(toy.sample(count, seed).float())


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


def _checkerboard() -> Toy:
    """Square (i, j) is [2i, 2i + 2) x [2j, 2j + 2); those with i + j even are filled."""
    corners = torch.tensor(
        [(2.0 * i, 2.0 * j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0],
        dtype=torch.float64,
    )

    def draw(count: int, generator: torch.Generator) -> Tensor:
        square = torch.randint(len(corners), (count,), generator=generator)
        offset = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return corners[square] + 2 * offset

    def log_density(points: Tensor) -> Tensor:
        cell = (points / 2).floor()
        inside = (cell >= -2).all(1) & (cell < 2).all(1) & (cell.sum(1) % 2 == 0)
        return torch.where(inside, points.new_tensor(-math.log(32)), -math.inf)

    return Toy(
        "checkerboard",
        "uniform on the 8 squares [2i, 2i + 2) x [2j, 2j + 2), i, j in -2..1, i + j even",
        math.log(32),
        draw,
        log_density,
    )


def _gaussians(name: str, formula: str, modes: Tensor, sigma: float, entropy: float) -> Toy:
    """Equal round Gaussians."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        mode = torch.randint(len(modes), (count,), generator=generator)
        return modes[mode] + sigma * _normal(count, generator)

    def log_density(points: Tensor) -> Tensor:
        return _mixture_log_density(points, modes, sigma)

    return Toy(name, formula, entropy, draw, log_density, modes, sigma)


def _mixture_log_density(points: Tensor, centres: Tensor, sigma: float) -> Tensor:
    """Log-density of an equal mixture of round Gaussians around `centres`."""
    norm = math.log(len(centres)) + _LOG_2PI + 2 * math.log(sigma)
    parts = []
    for part in points.split(_DENSITY_CHUNK):
        distance = torch.cdist(part, centres, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(torch.logsumexp(distance.square() / (-2 * sigma**2), 1) - norm)
    return torch.cat(parts)


def _ring(count: int, radius: float) -> Tensor:
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def _grid(side: int, spacing: float) -> Tensor:
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return torch.cartesian_prod(line, line)


def _separate_entropy(modes: int, sigma: float) -> float:
    """ln K + ln(2 pi e sigma^2): Gaussians 40 sigma apart and more do not overlap."""
    return math.log(modes) + 1 + _LOG_2PI + 2 * math.log(sigma)


def _curve(
    name: str,
    formula: str,
    curve: Callable[[Tensor], Tensor],
    sigma: float,
    entropy: float,
    nodes: int,
) -> Toy:
    """A curve c: [0, 1) -> plane at a uniform parameter, blurred by a round Gaussian.

    The density is an integral over the parameter, taken by the midpoint rule; with nodes a quarter
    of sigma apart or closer its error is far below float64's.
    """

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return curve(_uniform(count, generator)) + sigma * _normal(count, generator)

    def log_density(points: Tensor) -> Tensor:
        midpoints = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
        return _mixture_log_density(points, curve(midpoints), sigma)

    return Toy(name, formula, entropy, draw, log_density)


def _moons_curve(u: Tensor) -> Tensor:
    """The first half of [0, 1) runs over the upper moon, the second over the lower one."""
    upper = u < 0.5
    angle = 2 * math.pi * torch.where(upper, u, u - 0.5)
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], 1)


def _swissroll_curve(u: Tensor) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * u)
    return torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / 7.5


def _funnel() -> Toy:
    """Neal 2003: v ~ N(0, 3^2), x ~ N(0, e^v)."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        v, x = _normal(count, generator).unbind(1)
        v = 3 * v
        return torch.stack([v, x * (v / 2).exp()], 1)

    def log_density(points: Tensor) -> Tensor:
        v, x = points.unbind(1)
        log_v = -v.square() / 18 - math.log(3.0)
        return log_v - x.square() * (-v).exp() / 2 - v / 2 - _LOG_2PI

    entropy = 1 + _LOG_2PI + math.log(3)
    return Toy(
        "funnel", "v ~ N(0, 3^2), x ~ N(0, e^v); the point is (v, x)", entropy, draw, log_density
    )


def _make() -> dict[str, Toy]:
    root2 = math.sqrt(2)
    toys = [
        _checkerboard(),
        _gaussians(
            "8gaussians",
            "8 Gaussians at angles k pi/4 on a circle of radius 2 sqrt 2, sigma 0.5 / sqrt 2",
            _ring(8, 2 * root2),
            0.5 / root2,
            2.831578,
        ),
        _curve(
            "moons",
            "(cos t, sin t) or (1 - cos t, 1/2 - sin t), t ~ U[0, pi), plus N(0, 0.1^2)",
            _moons_curve,
            0.1,
            1.007552,
            nodes=512,
        ),
        _funnel(),
        _gaussians(
            "ring8",
            "8 Gaussians at angles k pi/4 on a circle of radius 1, sigma 0.01",
            _ring(8, 1.0),
            0.01,
            _separate_entropy(8, 0.01),
        ),
        _gaussians(
            "grid25",
            "25 Gaussians at {-4, -2, 0, 2, 4}^2, sigma 0.05",
            _grid(5, 2.0),
            0.05,
            _separate_entropy(25, 0.05),
        ),
        _gaussians(
            "8gaussians-wgan",
            "8 Gaussians at angles k pi/4 on a circle of radius 2, sigma 0.02, all over 1.414",
            _ring(8, 2.0) / 1.414,
            0.02 / 1.414,
            _separate_entropy(8, 0.02 / 1.414),
        ),
        _gaussians(
            "25gaussians-wgan",
            "25 Gaussians at {-4, -2, 0, 2, 4}^2, sigma 0.05, all over 2.828",
            _grid(5, 2.0) / 2.828,
            0.05 / 2.828,
            _separate_entropy(25, 0.05 / 2.828),
        ),
        _curve(
            "swissroll-wgan",
            "(t cos t, t sin t), t ~ U[3 pi/2, 9 pi/2), plus N(0, 0.25^2), all over 7.5",
            _swissroll_curve,
            0.25 / 7.5,
            0.458094,
            nodes=1024,
        ),
    ]
    return {toy.name: toy for toy in toys}


TOYS = _make()
