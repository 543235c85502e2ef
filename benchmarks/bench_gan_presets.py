"""Whole training steps of the presets wgan, wgan-gp, r3gan, veegan and gmmn on digits, of all players.

Eager and `eager, tuned` are as in `bench_gan_systems.py`, whose parts these are made of. Where the preset has
five steps of the critic for one of the generator, a row is all six. gmmn's is a step of its second phase.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_gan_systems import Eager, driven, measured, optimizer, plain, prepared
from torch import Tensor
from torch.nn.functional import softplus

from pyfastgan import data
from pyfastgan.gan import GAN, PRESETS, discriminator_loss, generator_loss, get_objective
from pyfastgan.ops.mmd import mmd_reference

SIZES = {
    "wgan": "digits 16 px, width 32, batch 64, five critic steps",
    "wgan-gp": "digits 16 px, width 32, batch 64, five critic steps",
    "r3gan": "digits 16 px, width 32, batch 64",
    "veegan": "digits 16 px, width 32, batch 64",
    "gmmn": "digits 16 px, batch 512, codes",
}


def system_of(name: str) -> tuple[Any, tuple[Tensor, ...], int]:
    """The system of a preset, a batch of its data, and the step to begin with."""
    if name in ("veegan", "gmmn"):
        system, batch, _ = prepared(name)
        return system, batch, 1 + getattr(system.config, "autoencoder_steps", 0)
    config = replace(PRESETS[name], image_size=16, channels=1)
    torch.manual_seed(0)
    return GAN(config), (data.load("digits", size=16).tensors[0][: config.batch_size],), 1


def eager_gan(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    g, d = (plain(system.networks[name]) for name in ("generator", "discriminator"))
    (real,), config = batch, system.config
    players = Eager([g], [d], config, tuned)
    pairs = get_objective(config.objective).pairs

    def squared_slopes(x: Tensor, judged: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(judged.sum(), x, create_graph=True)
        return slope.flatten(1).square().sum(1)

    def step() -> None:
        for _ in range(config.discriminator_steps):
            fake = g(torch.randn(len(real), config.latent_dim))
            shown, of = (x.detach().requires_grad_(config.penalty == "r1r2") for x in (fake, real))
            of_fake, of_real = d(shown), d(of)
            loss = discriminator_loss(config.objective, of_real, of_fake)
            if config.penalty == "r1r2":
                slopes = squared_slopes(of, of_real) + squared_slopes(shown, of_fake)
                loss = loss + config.penalty_weight / 2 * slopes.mean()
            elif config.penalty == "wgan-gp":
                x = torch.lerp(shown, of, torch.rand(len(real), 1, 1, 1)).requires_grad_()
                off = squared_slopes(x, d(x)).sqrt() - 1
                loss = loss + config.penalty_weight * off.square().mean()
            players.judge(loss)
            if config.clip:
                with torch.no_grad():
                    for p in d.parameters():
                        p.clamp_(-config.clip, config.clip)
        players.make(lambda: generator_loss(config.objective, d(fake), d(real) if pairs else None))

    return step


def eager_veegan(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    names = ("generator", "reconstructor", "discriminator")
    g, f, d = (plain(system.networks[name]) for name in names)
    real, players = batch[0], Eager([g, f], [d], system.config, tuned)

    def step() -> None:
        z = torch.randn(len(real), system.config.latent_dim)
        fake = g(z)
        judged = softplus(-d(z, fake.detach())) + softplus(d(f(real).detach(), real))
        players.judge(judged.mean())
        weight = system.config.reconstruction_weight
        players.make(lambda: d(z, fake).mean() + weight * (z - f(fake)).square().sum(1).mean())

    return step


def eager_gmmn(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    generator, encoder = (plain(system.networks[name]) for name in ("generator", "encoder"))
    real, improve = batch[0], optimizer([generator.main], system.config, tuned)
    widths = system._widths(real)

    def step() -> None:
        made = generator.main(torch.randn(len(real), system.config.latent_dim)).flatten(1)
        with torch.no_grad():
            codes = encoder.eval()(real)
        improve.zero_grad()
        mmd_reference(made, codes, widths, unbiased=False).sqrt().backward()
        improve.step()

    return step


def eager_step(name: str, tuned: bool = False) -> Callable[[], None]:
    system, batch, _ = system_of(name)
    if tuned:
        batch = (batch[0].contiguous(memory_format=torch.channels_last), *batch[1:])
    other = {"veegan": eager_veegan, "gmmn": eager_gmmn}
    return other.get(name, eager_gan)(system, batch, tuned)


def our_step(name: str) -> Callable[[], Any]:
    system, batch, first = system_of(name)
    return driven(system, batch, first, getattr(system.config, "discriminator_steps", 1))


@pytest.mark.parametrize("name", SIZES)
def test_step(measure: Any, benchmark: Any, name: str) -> None:
    measured(measure, benchmark, name, SIZES[name], our_step, eager_step)
