"""Adversarial objectives on a critic's outputs, one row of a table each.

An output `l` is a logit where the objective has a probability, D = sigmoid(l), and a score elsewhere.
Real data have the density p, generated data the density q. Every loss is a mean over a batch, to be
minimised by its own player. `real` and `fake` are floating-point tensors of any shape: one output a
sample, (N,) or (N, 1), or patches (N, 1, h, w), which are averaged.

Half-precision outputs are computed and returned in float32, since the square of 1e4 does not fit
float16; float32 and float64 stay what they are. All losses are finite for outputs up to 1e4 in size,
and a NaN output gives a NaN loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyfastgan._names import check_choice


@dataclass(frozen=True)
class Term:
    """A loss of each output by itself, and its derivative in closed form (at a kink, torch's choice).

    Both map a tensor to one of the same shape and dtype; torch's autograd differentiates `value`
    as often as the caller likes.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What the two players minimise.

    Without `pairs` the discriminator's loss is mean real(r) + mean fake(f), and the generator's
    mean generator(f). With it each real output r is compared with one generated output f, as a
    relativistic loss does: mean real(r - f) for the discriminator, which has no `fake` term, and
    mean generator(f - r) for the generator. Elsewhere the generator has no use for the real
    outputs, and a trainer saves that pass through the discriminator.
    """

    real: Term
    fake: Term | None
    generator: Term
    pairs: bool = False


_LIKELY = Term(lambda x: softplus(-x), lambda x: -torch.sigmoid(-x))  # -log D
_UNLIKELY = Term(softplus, torch.sigmoid)  # -log(1 - D)
_RAISE = Term(torch.neg, lambda x: -torch.ones_like(x))
_LOWER = Term(lambda x: x, torch.ones_like)
_TO_ONE = Term(lambda x: 0.5 * (x - 1).square(), lambda x: x - 1)
_TO_ZERO = Term(lambda x: 0.5 * x.square(), lambda x: x)
# The comparisons are turned round so that NaN has a slope, as it has in torch's.
_ABOVE_ONE = Term(lambda x: torch.relu(1 - x), lambda x: -(~(x >= 1)).to(x.dtype))
_BELOW_MINUS_ONE = Term(lambda x: torch.relu(1 + x), lambda x: (~(x <= -1)).to(x.dtype))

OBJECTIVES: dict[str, Objective] = {
    # Goodfellow et al. 2014, "Generative adversarial nets", equation 1, proposition 1 and theorem
    # 1: the discriminator's minimum log 4 - 2 JSD(p, q) is reached at D = p / (p + q); the
    # generator's share E_q log(1 - D) of the zero-sum game saturates where D is sure.
    "minimax": Objective(
        _LIKELY, _UNLIKELY, Term(lambda x: -softplus(x), lambda x: -torch.sigmoid(x))
    ),
    # Goodfellow et al. 2014, section 3: the same fixed point, and a gradient -E_q log D for the
    # generator where the discriminator is sure.
    "non-saturating": Objective(_LIKELY, _UNLIKELY, _LIKELY),
    # Mao et al. 2017, "Least squares generative adversarial networks", equation 9, with targets a =
    # 0 and b = c = 1: at its minimum l = p / (p + q).
    "least-squares": Objective(_TO_ONE, _TO_ZERO, _TO_ONE),
    # Lim and Ye 2017, "Geometric GAN"; Miyato et al. 2018, "Spectral normalization for generative
    # adversarial networks": the minimum 2 - 2 TV(p, q) is reached at l = sign(p - q).
    "hinge": Objective(_ABOVE_ONE, _BELOW_MINUS_ONE, _RAISE),
    # Arjovsky et al. 2017, "Wasserstein GAN", equations 2 and 3: over critics of slope 1 the
    # minimum is minus the Wasserstein-1 distance of p and q.
    "wgan": Objective(_RAISE, _LOWER, _RAISE),
    # Jolicoeur-Martineau 2019, "The relativistic discriminator", the paired loss of section 4.1;
    # with R1 and R2 that of R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN!").
    "relativistic": Objective(_LIKELY, None, _LIKELY, pairs=True),
}


def get_objective(name: str) -> Objective:
    """The row of that name; a `ValueError` that names the nearest one if there is none."""
    check_choice("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def discriminator_loss(objective: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, a scalar, given its outputs on real and on generated
    samples.

    Differentiable as often as the caller likes. Raises `ValueError` for an unknown objective, for
    empty outputs, and for outputs of two shapes under an objective that `pairs`; `TypeError` for
    outputs that are not floating point.
    """
    row, real, fake = get_objective(objective), _outputs("real", real), _outputs("fake", fake)
    if row.fake is None:
        return row.real.value(_difference(objective, real, fake)).mean()
    return row.real.value(real).mean() + row.fake.value(fake).mean()


def generator_loss(objective: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """What the generator minimises, a scalar; only an objective that `pairs` needs the `real`
    outputs.

    Raises as `discriminator_loss` does, and `ValueError` for `real` outputs that are missing.
    """
    row = get_objective(objective)
    return row.generator.value(_generator_input(objective, fake, real)).mean()


def discriminator_slopes(objective: str, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of `discriminator_loss` by every output: of the shapes of `real` and `fake`.

    In closed form, without a graph to walk back through. Raises as `discriminator_loss` does.
    """
    row, real, fake = get_objective(objective), _outputs("real", real), _outputs("fake", fake)
    if row.fake is None:
        slope = row.real.slope(_difference(objective, real, fake)) / real.numel()
        return slope, -slope
    return row.real.slope(real) / real.numel(), row.fake.slope(fake) / fake.numel()


def generator_slope(objective: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """The derivative of `generator_loss` by every output on a generated sample, in closed form."""
    row = get_objective(objective)
    return row.generator.slope(_generator_input(objective, fake, real)) / fake.numel()


def _generator_input(objective: str, fake: Tensor, real: Tensor | None) -> Tensor:
    fake = _outputs("fake", fake)
    if not get_objective(objective).pairs:
        return fake
    if real is None:
        raise ValueError(
            f"real must be given: the {objective} loss compares fake outputs with real"
        )
    return -_difference(objective, _outputs("real", real), fake)


def _difference(objective: str, real: Tensor, fake: Tensor) -> Tensor:
    if real.shape != fake.shape:
        raise ValueError(
            f"real and fake must be of one shape: the {objective} loss compares them one by one, "
            f"got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    return real - fake


def sample_scores(output: Tensor, count: int) -> Tensor:
    """A critic's output as one number a sample, (N,): patches (N, 1, h, w) are averaged.

    Differentiable. Raises `TypeError` for an output that is no floating-point tensor, `ValueError`
    for one that is not of shape (N,), (N, 1) or (N, 1, h, w) with N = `count`.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"the critic's output must be a floating-point tensor, got {kind}")
    shape = tuple(output.shape)
    if shape == (count,):
        return output
    if shape[:2] != (count, 1) or len(shape) not in (2, 4) or 0 in shape[2:]:
        raise ValueError(
            f"the critic's output must be of shape ({count},), ({count}, 1) or, for patches, "
            f"({count}, 1, h, w), got {shape}"
        )
    # Half types have too few bits for the mean of many patches.
    return (
        output.flatten(1).mean(1, dtype=_accumulating(output.dtype))
        if len(shape) == 4
        else output[:, 0]
    )


def _outputs(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor of outputs, not {kind}")
    if value.numel() == 0:
        raise ValueError(f"{name} must hold at least one output, not shape {tuple(value.shape)}")
    return value.to(_accumulating(value.dtype))


def _accumulating(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
