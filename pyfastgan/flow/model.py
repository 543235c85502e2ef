"""A normalizing flow: an invertible map to a base distribution, and the density that it gives.

With z = f(x), log p(x) = log p_base(z) + log |det df/dx|, in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan._names import check_choice
from pyfastgan.flow.layers import initialize
from pyfastgan.ops import random_normal, random_uniform
from pyfastgan.training.config import check_number

BASES = ("normal", "uniform")
# Sampled at once, so that large counts fit in memory.
_NUMBERS = 2**18
_SLACK = 1e-3


class Flow(nn.Module):
    """A flow made of a transform; `RealNVP`, `Glow`, `NSF`, `MAF` and `IAF` are this with their transforms.

    Args:
        transform: A layer from data (N, *shape) to (N, D), D numbers in all: `z, logdet = transform(x, condition)`, and
            its `inverse`.
        shape: Of x: (D,), or (C, H, W).
        base: "normal", or "uniform" on [0, 1).
        dequantize: `pyfastgan.nn.UniformDequantize` or `VariationalDequantize`: then x are images in [-1, 1], which are
            rounded to its levels, and log p is a lower bound of the log-probability of the rounded image.
        classes: Of a model that is conditional on classes, int64 (N,).
        condition: Numbers of a vector that the model is conditional on, (N, condition).

    Layers get a class as one-hot numbers.
    """

    def __init__(
        self,
        transform: nn.Module,
        shape: tuple[int, ...],
        *,
        base: str = "normal",
        dequantize: nn.Module | None = None,
        classes: int | None = None,
        condition: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("base", base, BASES)
        condition_size(classes, condition)
        self.transform, self.shape, self.base = transform, tuple(shape), base
        self.dequantize, self.classes, self.condition = dequantize, classes, condition
        self.size = math.prod(shape)
        self.temperature = 1.0  # of samples where none is given

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        seed: int | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        """log p(x) in nats, (N,), in float32 or better.

        Args:
            x: (N, *shape).
            condition: int64 (N,) or (N, condition), of a conditional model.
            seed, sample_offset: Of the noise that images are dequantised with.

        Raises:
            TypeError, ValueError: x or the condition has another shape, dtype or range, or one is missing or not
                wanted.
            RuntimeError: An ActNorm was not initialised.
        """
        given = self._condition(condition, len(x))
        y, first = self._continuous(x, seed, sample_offset)
        z, logdet = self.transform(y, given)
        total = self._log_base(z) + logdet
        return total if first is None else total + first

    def log_prob(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        seed: int | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        """The same as calling the model."""
        found: Tensor = self(x, condition, seed=seed, sample_offset=sample_offset)
        return found

    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, *, seed: int | None = None
    ) -> Tensor:
        """-log2 p(x) for each number of x, (N,)."""
        return -self.log_prob(x, condition, seed=seed) / (self.size * math.log(2))

    @torch.no_grad()
    def init(self, x: Tensor, condition: Tensor | None = None, *, seed: int | None = None) -> None:
        """Initialises every ActNorm from a first batch."""
        given = self._condition(condition, len(x))
        initialize(self.transform, self._continuous(x, seed, 0)[0], given)

    def encode(
        self, x: Tensor, condition: Tensor | None = None, *, seed: int | None = None
    ) -> Tensor:
        """z (N, D)."""
        given = self._condition(condition, len(x))
        z: Tensor = self.transform(self._continuous(x, seed, 0)[0], given)[0]
        return z.flatten(1)

    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """x of z (N, D): images are rounded to their levels."""
        if z.dim() != 2 or z.size(1) != self.size:
            raise ValueError(f"z must be of shape (N, {self.size}), got {tuple(z.shape)}")
        x: Tensor = self.transform.inverse(z, self._condition(condition, len(z)))[0]  # type: ignore[operator]
        if self.dequantize is None:
            return x
        whole = self.dequantize.inverse(x)[0]  # type: ignore[operator]
        return whole / ((self.levels - 1) / 2) - 1

    @torch.no_grad()
    def sample(
        self,
        count: int,
        seed: int | None = None,
        *,
        temperature: float | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """x (count, *shape); sample i is the same for any count, up to rounding.

        Args:
            count: How many.
            seed: By default one is drawn from torch's generator.
            temperature: Factor of the base's standard deviation; by default `self.temperature`, which is 1, or that of
                the run that the model was loaded from.
            condition: Of a conditional model; without it the classes are taken in turns.
        """
        if temperature is None:
            temperature = self.temperature
        z = self.latents(count, seed, temperature=temperature)
        if condition is None and self.classes is not None:
            condition = torch.arange(count, device=z.device) % self.classes
        rows = max(1, _NUMBERS // self.size)
        several = [None] * (1 + count // rows) if condition is None else condition.split(rows)
        return torch.cat([self.decode(*pair) for pair in zip(z.split(rows), several)])

    def latents(self, count: int, seed: int | None = None, *, temperature: float = 1.0) -> Tensor:
        """z (count, D) of the base; vector i is the same for any count."""
        check_number("count", count, int, at_least=0)
        check_number("temperature", temperature, float, at_least=0)
        weight = next(self.parameters(), torch.empty(0))
        options = {"dtype": weight.dtype, "device": weight.device}
        if self.base == "normal":
            return temperature * random_normal((count, self.size), seed, **options)  # type: ignore[arg-type]
        if temperature != 1:
            raise ValueError(f"temperature must be 1 with a uniform base, got {temperature}")
        return random_uniform((count, self.size), seed, **options)  # type: ignore[arg-type]

    @property
    def levels(self) -> int:
        """Values of a pixel."""
        assert self.dequantize is not None
        return int(self.dequantize.levels)  # type: ignore[arg-type]

    def _log_base(self, z: Tensor) -> Tensor:
        z = z.flatten(1)
        wide = z if z.dtype == torch.float64 else z.float()
        if self.base == "normal":
            return -0.5 * (wide.square().sum(1) + self.size * math.log(2 * math.pi))
        inside = ((wide >= 0) & (wide <= 1)).all(1)
        return torch.where(inside, 0.0, -math.inf).to(wide.dtype)

    def _continuous(
        self, x: Tensor, seed: int | None, sample_offset: int
    ) -> tuple[Tensor, Tensor | None]:
        if tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"x must be of shape (N, {wanted}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be of a float dtype, got {x.dtype}")
        if self.dequantize is None:
            return x, None
        if x.device.type == "cpu" and x.numel():
            low, high = (float(bound) for bound in x.aminmax())
            if not -1 - _SLACK <= low <= high <= 1 + _SLACK:
                raise ValueError(f"x must be images in [-1, 1], got {low:.3g} to {high:.3g}")
        wide = x if x.dtype == torch.float64 else x.float()  # half types leave the level here
        whole = ((wide + 1) * ((self.levels - 1) / 2)).round()
        y, logdet = self.dequantize(whole, seed=seed, sample_offset=sample_offset)
        return y, logdet

    def _condition(self, condition: Tensor | None, count: int) -> Tensor | None:
        wanted = self.classes is not None or self.condition is not None
        if (condition is not None) != wanted:
            what = "is needed by a conditional model" if wanted else "needs a conditional model"
            raise ValueError(
                f"condition {what} (classes={self.classes}, condition={self.condition})"
            )
        if condition is None:
            return None
        if self.classes is None:
            if condition.shape != (count, self.condition):
                raise ValueError(
                    f"condition must be of shape ({count}, {self.condition}), got {tuple(condition.shape)}"
                )
            return condition
        if condition.shape != (count,) or condition.dtype != torch.int64:
            raise ValueError(
                f"condition must be classes, int64 of shape ({count},), got {condition.dtype} {tuple(condition.shape)}"
            )
        if condition.device.type == "cpu" and count:
            low, high = (int(bound) for bound in condition.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(f"condition must lie in [0, {self.classes}), got {low} to {high}")
        weight = next(self.parameters(), torch.empty(0))
        return functional.one_hot(condition, self.classes).to(weight.dtype)


def condition_size(classes: int | None, condition: int | None) -> int:
    """Numbers that the networks get beside their input.

    Raises:
        TypeError, ValueError: Both kinds at once, or a count below 1.
    """
    if classes is not None and condition is not None:
        raise ValueError(
            f"a model has classes or condition, not both, got {classes} and {condition}"
        )
    for name, count in (("classes", classes), ("condition", condition)):
        if count is not None:
            check_number(name, count, int, at_least=1)
    return classes or condition or 0
