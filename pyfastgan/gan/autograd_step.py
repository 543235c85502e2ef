"""A critic's gradients by autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.objectives import discriminator_loss, sample_scores
from pyfastgan.gan.penalties import gradient_penalty


@dataclass
class CriticStep:
    loss: Tensor
    adversarial: Tensor
    penalty: Tensor
    gradient_norm: Tensor
    plan: str = "autograd"


def critic_step(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    *,
    loss: str,
    penalty: str | None = None,
    weight: float = 10.0,
    condition: Any = None,
    interval: int = 1,
    skip_nonfinite: bool = False,
    loss_scale: float = 1.0,
    **noise: Any,
) -> CriticStep:
    adversarial = discriminator_loss(
        loss, sample_scores(critic(real), len(real)), sample_scores(critic(fake), len(fake))
    )
    extra = torch.zeros(())
    if penalty is not None:
        extra = gradient_penalty(
            critic, real, fake, penalty=penalty, weight=weight, interval=interval, **noise
        )
    total = adversarial + extra
    (total * loss_scale).backward()
    return CriticStep(total.detach(), adversarial.detach(), extra.detach(), extra.detach())
