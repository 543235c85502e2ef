"""Adversarial objectives on a critic's outputs, one row of a table each.

An output `l` is a logit where the objective has a probability, D = sigmoid(l), and a score elsewhere.
Real data have the density p, generated data the density q. Every loss is a mean over a batch, to be
minimised by its own player. `real` and `fake` are floating-point tensors of any shape: one output a
sample, (N,) or (N, 1), or patches (N, 1, h, w), which are averaged.

Half-precision outputs are computed and returned in float32, since the square of 1e4 does not fit
float16; float32 and float64 stay what they are. All losses are finite for outputs up to 1e4 in size,
but for the exponentials of kl, reverse-kl and squared-hellinger, which leave float32 at outputs of
about 88; a NaN output gives a NaN loss.
"""

from __future__ import annotations

import math
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

_EXP_DOWN = Term(lambda x: (-x).exp(), lambda x: -(-x).exp())
_LOG_2 = math.log(2.0)


def _sure(x: Tensor) -> Tensor:
    """2 D (1 - D)."""
    d = torch.sigmoid(x)
    return 2 * d * (1 - d)


def _variational(real: Term, fake: Term) -> Objective:
    """Nowozin et al. 2016, equation 4, with v for the output and T = g_f(v): the discriminator
    maximises E_p T - E_q f*(T), which is at most D_f(p, q) and reaches it where T = f'(p / q); the
    generator minimises it. `real` is -T, `fake` is f*(T), both as functions of v.
    """
    generator = Term(lambda x: -fake.value(x), lambda x: -fake.slope(x))
    return Objective(real, fake, generator)


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
    # Nowozin et al. 2016, "f-GAN", tables 1, 2 and 6: minus the minimum of each is the divergence
    # D_f(p, q) = E_q f(p / q). All T rise with v, so that real samples have the high outputs.
    # f = u log u, T = v, f* = exp(T - 1): KL(p, q) at v = 1 + log p/q.
    "kl": _variational(_RAISE, Term(lambda x: (x - 1).exp(), lambda x: (x - 1).exp())),
    # f = -log u, T = -exp(-v), f* = -1 - log(-T): KL(q, p) at v = log p/q.
    "reverse-kl": _variational(_EXP_DOWN, Term(lambda x: x - 1, torch.ones_like)),
    # f = (u - 1)^2, T = v, f* = T^2 / 4 + T: E_q (p/q - 1)^2 at v = 2 (p/q - 1).
    "pearson": _variational(_RAISE, Term(lambda x: 0.25 * x.square() + x, lambda x: 0.5 * x + 1)),
    # f = (sqrt u - 1)^2, T = 1 - exp(-v), f* = T / (1 - T): sum (sqrt p - sqrt q)^2 at
    # v = log(p/q) / 2.
    "squared-hellinger": _variational(
        Term(lambda x: (-x).exp() - 1, _EXP_DOWN.slope),
        Term(lambda x: x.exp() - 1, torch.exp),
    ),
    # f = u log u - (u + 1) log((u + 1) / 2), T = log 2 - softplus(-v), f* = -log(2 - exp T): twice
    # JSD(p, q), since this f is without the usual 1/2, at v = log p/q. It is minimax up to log 4.
    "jensen-shannon": _variational(
        Term(lambda x: softplus(-x) - _LOG_2, _LIKELY.slope),
        Term(lambda x: softplus(x) - _LOG_2, torch.sigmoid),
    ),
    # f = |u - 1| / 2, T = tanh(v) / 2, f* = T: sum |p - q| / 2, in the limit v = +-inf.
    "total-variation": _variational(
        Term(lambda x: 0.5 - (2 * x).sigmoid(), lambda x: -_sure(2 * x)),
        Term(lambda x: (2 * x).sigmoid() - 0.5, lambda x: _sure(2 * x)),
    ),
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
