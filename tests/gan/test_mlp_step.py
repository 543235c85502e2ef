"""The written-out step of an mlp against autograd, in float64, and the trainer's two ways to one step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from pyfastgan.gan import (
    GAN,
    OBJECTIVES,
    PENALTIES,
    GANConfig,
    MLPCritic,
    MLPGenerator,
    discriminator_loss,
    generator_loss,
    get_objective,
    gradient_penalty,
)
from pyfastgan.gan.mlp_step import Passes, critics_turn, generators_turn

COUNT = 6
# Every penalty's set of points, none, and every objective with one of them.
CASES = [("relativistic", penalty) for penalty in (*PENALTIES, None)]
CASES += [(name, (*PENALTIES, None)[k % (len(PENALTIES) + 1)]) for k, name in enumerate(OBJECTIVES)]


def players(hidden: int) -> tuple[MLPGenerator, MLPCritic, Tensor, Tensor]:
    torch.manual_seed(hidden)
    generator = MLPGenerator(3, width=7, hidden_layers=hidden).double()
    critic = MLPCritic(2, width=5, hidden_layers=hidden).double()
    with torch.no_grad():
        for p in [*generator.parameters(), *critic.parameters()]:
            p += 0.1 * torch.randn_like(p)
    real, latent = (torch.randn(COUNT, d, dtype=torch.float64) for d in (2, 3))
    return generator, critic, real, latent


@pytest.mark.parametrize("hidden", [1, 2])
@pytest.mark.parametrize(("objective", "penalty"), CASES)
def test_both_turns_are_autograds(objective: str, penalty: str | None, hidden: int) -> None:
    generator, critic, real, latent = players(hidden)
    made = generator(latent)
    fake = made.detach()
    loss = discriminator_loss(objective, critic(real), critic(fake))
    total, weight = loss, torch.zeros(())
    if penalty is not None:
        weight = gradient_penalty(critic, real, fake, penalty=penalty, weight=3.0, seed=5)
        total = loss + weight
    expected = torch.autograd.grad(total, list(critic.parameters()))
    other = critic(real) if get_objective(objective).pairs else None
    value = generator_loss(objective, critic(made), other)
    of_generator = torch.autograd.grad(value, list(generator.parameters()))

    judge, make = Passes(critic), Passes(generator)
    # Twice, since gradients are overwritten and never added to.
    for _ in range(2):
        with torch.no_grad():
            kept, output = make.forward(latent)
        torch.testing.assert_close(output, fake)
        found = critics_turn(
            judge, real, output, objective=objective, penalty=penalty, weight=3.0, seed=5
        )
        turn, by_sample = generators_turn(judge, real, output, objective=objective)
        with torch.no_grad():
            make.overwrite(kept, by_sample)
    torch.testing.assert_close(found[0], loss)
    torch.testing.assert_close(found[1].double(), weight.double())
    torch.testing.assert_close(turn, value)
    for network, gradients in ((critic, expected), (generator, of_generator)):
        for p, g in zip(network.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "relativistic", "penalty": "r1r2"},
        {"objective": "wgan", "clip": 0.05, "discriminator_steps": 2},
        {"objective": "wgan", "penalty": "wgan-gp", "penalty_interval": 2},
        {"objective": "kl", "pack": 2, "orthogonal_weight": 0.01, "penalty": "r1"},
    ],
    ids=str,
)
def test_the_trainers_two_ways(changes: dict[str, object]) -> None:
    """The written step and that of any network, from the same weights."""
    fabric = Fabric(accelerator="cpu", devices=1)
    config = replace(
        GANConfig(architecture="mlp", width=16, hidden_layers=2, latent_dim=2, batch_size=8),
        **changes,
    )
    gans = []
    for _ in range(2):
        torch.manual_seed(1)
        gans.append(GAN(config))
    gans[1]._passes = None
    for step in (1, 2, 3):
        real = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
        logged = [gan.training_step(fabric, (real,), step) for gan in gans]
        assert logged[0].keys() == logged[1].keys()
        for key, value in logged[0].items():
            torch.testing.assert_close(value, logged[1][key], rtol=1e-4, atol=1e-5, msg=key)
        for name in ("generator", "discriminator"):
            parts = zip(*(gan.networks[name].parameters() for gan in gans), strict=True)
            for one, two in parts:
                torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-5)


def test_what_is_not_written_out() -> None:
    """Autocast and parametrised weights take the general step."""
    for changes in ({"precision": "bf16-mixed"}, {"spectral_norm": True}):
        assert GAN(replace(GANConfig(architecture="mlp", width=4), **changes))._passes is None
