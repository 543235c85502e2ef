"""Gradient penalties of a critic, one row of a table each, and the penalty of any critic by autograd.

With one output D(x) a sample and g = dD/dx at the penalised points:

    wgan-gp            weight * mean (|g| - 1)^2, at random points between real and fake samples
                       (Gulrajani et al. 2017, "Improved training of Wasserstein GANs", equation 3)
    wgan-gp-one-sided  weight * mean max(0, |g| - 1)^2, at the same points (the same paper, section
                       4, "two-sided penalty"; Petzka et al. 2018)
    r1, r2, r1r2       weight / 2 * mean |g|^2, at real samples, at fake ones, or the sum of both
                       (Mescheder et al. 2018, "Which training methods for GANs do actually
                       converge?", equations 9 and 10)
    dragan             weight * mean (|g| - 1)^2, at real samples plus normal noise, half as wide as
                       the batch's values are spread (Kodali et al. 2017, "On convergence and
                       stability of GANs", with the noise of its code)

|g| is the Euclidean norm over a sample's elements. Where |g| = 0 the derivative of |g| is taken as 0.
Norms and penalties are float32 for half-precision gradients, and of the gradients' dtype elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.gan.objectives import sample_scores
from pyfastgan.ops import random_normal
from pyfastgan.ops._penalty import SHAPES, points_between, row_products
from pyfastgan.ops._penalty import penalty_gradient as of_gradients


@dataclass(frozen=True)
class Penalty:
    """A penalty of weight 1 as a function of each sample's squared gradient norm s = |g|^2.

    Args:
        shape: How it grows with |g|: two-sided, one-sided or half (`pyfastgan.ops._penalty`).
        points: Where: any of "real", "fake", "between", "around".
    """

    shape: str
    points: tuple[str, ...]

    @property
    def value(self) -> Callable[[Tensor], Tensor]:
        """s (N,) -> the penalty p(s) of each sample (N,). Differentiable twice."""
        return SHAPES[self.shape].value


PENALTIES: dict[str, Penalty] = {
    "wgan-gp": Penalty("two-sided", ("between",)),
    "wgan-gp-one-sided": Penalty("one-sided", ("between",)),
    "r1": Penalty("half", ("real",)),
    "r2": Penalty("half", ("fake",)),
    "r1r2": Penalty("half", ("real", "fake")),
    "dragan": Penalty("two-sided", ("around",)),
}


def get_penalty(name: str) -> Penalty:
    """The row of that name; a `ValueError` that names the nearest one if there is none."""
    check_choice("penalty", name, PENALTIES)
    return PENALTIES[name]


def squared_norms(g: Tensor) -> Tensor:
    """|g|^2 of each sample, (N, ...) to (N,), summed in float32 or better."""
    return row_products(g, None)


def penalty_value(penalty: str, squared: Tensor, weight: float = 1.0) -> Tensor:
    """The penalty, a scalar, of the squared norms (N,) of the gradients at one set of points.

    Raises `ValueError` for an unknown penalty.
    """
    return weight * get_penalty(penalty).value(squared).mean()


def penalty_gradient(penalty: str, g: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The penalty of gradients at one set of points, and its derivative by each of them.

    Args:
        penalty: A name of `PENALTIES`.
        g: (N, ...), the gradients of each sample's output.
        weight: Of the penalty.

    Returns:
        `penalty_value` of the squared norms; its derivative by g, of g's shape, dtype and memory
        layout; and the norms (N,).
    """
    return of_gradients(g, get_penalty(penalty).shape, weight)


def penalty_points(
    penalty: str,
    real: Tensor,
    fake: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """The sets of points, each (N, ...), at which a penalty looks at the gradient.

    Args:
        penalty: A name of `PENALTIES`.
        real: (N, ...), floating point.
        fake: Of the same shape and dtype; `r1` and `dragan` do not look at it.
        seed, stream, sample_offset, generator: The noise, as in `pyfastgan.ops.random_uniform`. A
            sample's is the same however the batch is split.

    Returns:
        Without gradients.

    Raises:
        TypeError, ValueError: An unknown penalty, samples of another kind, two shapes, or none.
    """
    row = get_penalty(penalty)
    _check_samples(real, fake, needs_fake=any(p in ("fake", "between") for p in row.points))
    noise: dict[str, Any] = {
        "stream": stream,
        "sample_offset": sample_offset,
        "generator": generator,
    }
    real = real.detach()
    found = []
    for where in row.points:
        if where == "real":
            found.append(real)
        elif where == "around":
            shape = real.shape if real.ndim > 1 else (len(real), 1)
            normal = random_normal(shape, seed, dtype=real.dtype, device=real.device, **noise)
            found.append(real + 0.5 * _spread(real) * normal.reshape(real.shape))
        else:
            assert fake is not None
            between = where == "between"
            found.append(points_between(fake, real, seed, **noise) if between else fake.detach())
    return found


def gradient_penalty(
    critic: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor | None = None,
    *,
    penalty: str,
    weight: float = 10.0,
    condition: Any = None,
    interval: int = 1,
    seed: int | Tensor | None = None,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The gradient penalty of any critic, by torch's double backward.

    Args:
        critic: Called as `critic(x)`, or `critic(x, condition)` where a condition is given; returns
            (N,), (N, 1), or patches (N, 1, h, w), which are averaged a sample.
        real: (N, ...), floating point.
        fake: Of the same shape and dtype; `r1` and `dragan` do not look at it.
        penalty: wgan-gp, wgan-gp-one-sided, r1, r2, r1r2 or dragan.
        weight: At least 0.
        condition: What the critic is told about the samples beside them.
        interval: The penalty is multiplied by it, for one that is taken on one step in `interval`
            alone (lazy regularisation, Karras et al. 2020): the caller leaves out the others.
        seed, stream, sample_offset, generator: The noise of the points, as in
            `pyfastgan.ops.random_uniform`.

    Returns:
        A scalar, to be added to the critic's loss: differentiable by the critic's weights, not by the
        samples.

    Raises:
        TypeError, ValueError: An unknown penalty (with the nearest), a weight below 0, samples of
            two shapes, a critic whose output has another shape or does not depend on its input, or
            that is a module none of whose parameters needs a gradient.
    """
    check_weight(weight, interval)
    check_trainable(critic)
    found, _ = penalty_and_norm(
        critic,
        real,
        fake,
        penalty=penalty,
        weight=weight * interval,
        condition=condition,
        seed=seed,
        stream=stream,
        sample_offset=sample_offset,
        generator=generator,
    )
    return found


def penalty_and_norm(
    critic: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor | None,
    *,
    penalty: str,
    weight: float,
    condition: Any,
    **noise: Any,
) -> tuple[Tensor, Tensor]:
    """`gradient_penalty`, and without a graph the mean norm of the gradients."""
    row = get_penalty(penalty)
    points = penalty_points(penalty, real, fake, **noise)
    values, norms = [], []
    with torch.enable_grad():
        for x in points:
            x = x.detach().requires_grad_(True)
            output = critic(x) if condition is None else critic(x, condition)
            scores = sample_scores(output, len(x))
            g = None
            if scores.requires_grad:
                (g,) = torch.autograd.grad(scores.sum(), x, create_graph=True, allow_unused=True)
            if g is None:
                raise ValueError("the critic's output must depend on its input, got a constant")
            squared = squared_norms(g)
            values.append(row.value(squared).mean())
            norms.append(squared.detach().sqrt().mean())
    return weight * sum(values[1:], values[0]), torch.stack(norms).mean()


def check_weight(weight: float, interval: int) -> None:
    """Refuses a penalty's weight below 0 and an interval below 1."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight must be a number, got {type(weight).__name__}")
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"weight must be finite and at least 0, got {weight}")
    if isinstance(interval, bool) or not isinstance(interval, int):
        raise TypeError(f"interval must be an int, got {interval!r}")
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}")


def check_trainable(critic: Callable[..., Tensor]) -> None:
    """Refuses a module none of whose parameters needs a gradient."""
    if isinstance(critic, nn.Module) and not any(p.requires_grad for p in critic.parameters()):
        raise ValueError(
            "the critic must have a parameter that needs a gradient, got a frozen one "
            "(requires_grad_(True) thaws it)"
        )


def _spread(x: Tensor) -> Tensor:
    """The standard deviation of all values, 0 for one value."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (x - x.mean()).square().mean().sqrt().to(x.dtype)


def _check_samples(real: Tensor, fake: Tensor | None, *, needs_fake: bool) -> None:
    for name, x in (("real", real), ("fake", fake)):
        if x is None and name == "fake" and not needs_fake:
            continue
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"{name} must hold at least one sample, got shape {tuple(x.shape)}")
    if fake is not None and fake.shape != real.shape:
        raise ValueError(
            f"real and fake must be of one shape, got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    if fake is not None and (fake.dtype, fake.device) != (real.dtype, real.device):
        raise TypeError(
            "real and fake must be of one dtype and on one device, got "
            f"{real.dtype} on {real.device} and {fake.dtype} on {fake.device}"
        )
