"""Adversarial objectives on logits, one row of a table each.

A discriminator's output `l` is a logit: D = sigmoid(l). Real data have the density p, generated
data the density q. Every loss is a mean over a batch, to be minimised by its own player. `real` and
`fake` are floating-point tensors of any shape: one logit a sample, (N,) or (N, 1), or patches (N,
1, h, w), which are averaged.

Half-precision logits are computed and returned in float32, since the square of 1e4 does not fit
float16; float32 and float64 stay what they are. All losses are finite for logits up to 1e4 in size,
and a NaN logit gives a NaN loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyfastgan._names import check_choice


@dataclass(frozen=True)
class Objective:
    """What the two players minimise, as functions of `(real, fake)` logits.

    `pairs` says that the generator's loss looks at the real logits too, as a relativistic one does;
    elsewhere it is given `None` for them, and the trainer saves that pass through the
    discriminator.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor | None, Tensor], Tensor]
    pairs: bool = False


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """-E_p log D - E_q log(1 - D); its minimum log 4 - 2 JSD(p, q) is reached at D = p / (p + q).

    Goodfellow et al. 2014, "Generative adversarial nets", equation 1, proposition 1 and theorem 1.
    """
    return softplus(-real).mean() + softplus(fake).mean()


def _minimax_generator(_: Tensor | None, fake: Tensor) -> Tensor:
    """E_q log(1 - D), the generator's share of the zero-sum game; saturates where D is sure.

    Goodfellow et al. 2014, equation 1.
    """
    return -softplus(fake).mean()


def _non_saturating_generator(_: Tensor | None, fake: Tensor) -> Tensor:
    """-E_q log D: the same fixed point as minimax, with a gradient where the discriminator is sure.

    Goodfellow et al. 2014, section 3.
    """
    return softplus(-fake).mean()


def _least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(E_p (l - 1)^2 + E_q l^2) / 2, at its minimum where l = p / (p + q).

    Mao et al. 2017, "Least squares generative adversarial networks", equation 9: targets a = 0 and
    b = c = 1.
    """
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def _least_squares_generator(_: Tensor | None, fake: Tensor) -> Tensor:
    """E_q (l - 1)^2 / 2. Mao et al. 2017, equation 9."""
    return 0.5 * (fake - 1).square().mean()


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E_p max(0, 1 - l) + E_q max(0, 1 + l), at its minimum 2 - 2 TV(p, q) where l = sign(p - q).

    Lim and Ye 2017, "Geometric GAN"; Miyato et al. 2018, "Spectral normalization for generative
    adversarial networks".
    """
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def _hinge_generator(_: Tensor | None, fake: Tensor) -> Tensor:
    """-E_q l. Lim and Ye 2017; Miyato et al. 2018."""
    return -fake.mean()


OBJECTIVES: dict[str, Objective] = {
    "minimax": Objective(_cross_entropy, _minimax_generator),
    "non-saturating": Objective(_cross_entropy, _non_saturating_generator),
    "least-squares": Objective(_least_squares_discriminator, _least_squares_generator),
    "hinge": Objective(_hinge_discriminator, _hinge_generator),
}


def get_objective(name: str) -> Objective:
    """The row of that name; a `ValueError` that names the nearest one if there is none."""
    check_choice("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def discriminator_loss(objective: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, a scalar, given its logits on real and on generated
    samples.

    Differentiable as often as the caller likes. Raises `ValueError` for an unknown objective or
    empty logits, `TypeError` for logits that are not floating point.
    """
    return get_objective(objective).discriminator(_logits("real", real), _logits("fake", fake))


def generator_loss(objective: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """What the generator minimises, a scalar; only an objective that `pairs` needs the `real`
    logits.

    Raises as `discriminator_loss` does, and `ValueError` for `real` logits that are missing.
    """
    row = get_objective(objective)
    if row.pairs and real is None:
        raise ValueError(f"real must be given: the {objective} loss compares fake logits with real")
    return row.generator(_logits("real", real) if real is not None else None, _logits("fake", fake))


def _logits(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor of logits, not {kind}")
    if value.numel() == 0:
        raise ValueError(f"{name} must hold at least one logit, not shape {tuple(value.shape)}")
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
