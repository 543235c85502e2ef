"""The mode suite's training steps: points in the plane, networks of 2 x 128 units, batches of 512.

Eager is the loop as the field writes it: layers of `torch.nn`, real and generated points judged apart,
`create_graph=True` for the penalty, torch's noise, Adam as it comes, a discriminator that is not frozen
in the generator's turn. Ours is the step that `pyfastgan evaluate modes` takes. The limit counts the
products of the written-out step.
"""

from itertools import count

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan import data
from pyfastgan.gan import GAN, discriminator_loss, generator_loss, get_objective, system_config
from pyfastgan.ops._registry import Row, ops
from pyfastgan.training.sampler import Sampler, batches

SYSTEMS = ["r3gan", "non-saturating", "wgan+wgan-gp", "non-saturating+pac2"]


def mlp(inputs, width, outputs):
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, outputs),
    )  # fmt: skip


def eager_step(config, points):
    make = mlp(config.latent_dim, config.width, 2)
    judge = mlp(2 * config.pack, config.width, 1)
    optimizers = [
        torch.optim.Adam(net.parameters(), config.learning_rate, config.betas)
        for net in (judge, make)
    ]
    size, weight = config.batch_size, config.penalty_weight
    pairs = get_objective(config.objective).pairs

    def penalised(x, judged, slope_one):
        (g,) = torch.autograd.grad(judged.sum(), x, create_graph=True)
        if slope_one:
            return weight * (g.norm(dim=1) - 1).square().mean()
        return weight / 2 * g.square().sum(1).mean()

    def step():
        index = torch.randint(len(points), (size,))
        real = points[index].view(-1, 2 * config.pack)
        made = make(torch.randn(size, config.latent_dim))
        fake = made.detach().view(-1, 2 * config.pack)
        if config.penalty == "r1r2":
            real.requires_grad_(), fake.requires_grad_()
        of_real, of_fake = judge(real), judge(fake)
        loss = discriminator_loss(config.objective, of_real, of_fake)
        if config.penalty == "r1r2":
            loss = loss + penalised(real, of_real, False) + penalised(fake, of_fake, False)
        if config.penalty == "wgan-gp":
            x = torch.lerp(fake, real, torch.rand(len(real), 1)).requires_grad_()
            loss = loss + penalised(x, judge(x), True)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        judged = judge(real.detach()) if pairs else None
        loss = generator_loss(config.objective, judge(made.view(-1, 2 * config.pack)), judged)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()

    return step


def our_step(config, points):
    system = GAN(config)
    fabric = Fabric(accelerator="cpu", devices=1)
    for name, network in system.networks.items():
        system.networks[name] = fabric.setup_module(network)
        system.optimizers[name] = fabric.setup_optimizers(system.optimizers[name])
    steps = count(1)
    drawn = batches(
        data.TensorData(points), Sampler(len(points), config.batch_size, 0), points.device
    )

    def step():
        system.training_step(fabric, next(drawn), next(steps))

    return step


@pytest.mark.parametrize("system", SYSTEMS)
def test_step(measure, benchmark, system):
    config = system_config(system)
    points = data.load("ring8").tensors[0]
    with FlopCounterMode(display=False) as counter:
        our_step(config, points)()
    row = Row(
        f"mode suite training step, {system}",
        "2 x 128 units, batch 512",
        lambda: {"ours": our_step(config, points), "eager": eager_step(config, points)},
        bytes=0,
        flops=counter.get_total_flops(),
    )
    result = measure(row, [ops()["random_normal"]], compile_eager=False)
    benchmark.extra_info |= result["ratios"]
    benchmark.pedantic(our_step(config, points), rounds=20)
