"""The Wasserstein-1 distance of two unit Gaussians on a line, a shift of 1 apart, which is 1.

Against the penalty of weight lambda the best critic is a x with a = 1 + shift / (2 lambda): it
minimises -shift * a + lambda (|a| - 1)^2, and no other critic does better, since the penalty lets
every point have that slope.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyfastgan.gan import discriminator_loss, gradient_penalty
from pyfastgan.gan.mlp import MLPCritic
from pyfastgan.ops import random_normal

SHIFT = 1.0


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0, 100.0])
def test_the_slope_of_the_best_linear_critic(weight: float) -> None:
    critic = nn.Linear(1, 1, dtype=torch.float64)
    fake = random_normal((64, 1), 0, dtype=torch.float64)
    real = fake + SHIFT
    optimizer = torch.optim.LBFGS(
        critic.parameters(), tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = discriminator_loss("wgan", critic(real), critic(fake))
        loss = loss + gradient_penalty(critic, real, fake, penalty="wgan-gp", weight=weight, seed=0)
        loss.backward()
        return loss

    nn.init.constant_(critic.weight, 0.5)
    optimizer.step(closure)
    assert float(critic.weight.detach()) == pytest.approx(1 + SHIFT / (2 * weight), rel=1e-9)


def test_a_trained_critic_recovers_the_distance() -> None:
    torch.manual_seed(0)
    critic = MLPCritic(dimension=1, width=64)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3, (0.0, 0.9), fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 400)
    for step in range(400):
        # At 100 from the start, the penalty holds each piece of a random critic at slope 1 or -1,
        # whichever is nearer, and the loss of weight 1 cannot turn it round.
        weight = 0.1 * 1000.0 ** min(1.0, step / 200)
        real = random_normal((256, 1), 1, stream=step) + SHIFT
        fake = random_normal((256, 1), 2, stream=step)
        optimizer.zero_grad()
        loss = discriminator_loss("wgan", critic(real), critic(fake))
        penalty = gradient_penalty(
            critic, real, fake, penalty="wgan-gp", weight=weight, seed=3, stream=step
        )
        (loss + penalty).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        # The same points, shifted: the means of two other samples would differ by their noise.
        x = random_normal((100_000, 1), 4)
        estimate = -discriminator_loss("wgan", critic(x + SHIFT), critic(x))
    assert float(estimate) == pytest.approx(SHIFT, rel=0.05)
