"""A whole step of a DCGAN on digits: both players, both optimizers.

Eager is PyTorch's DCGAN tutorial at 16 pixels: networks of `torch.nn`, a sigmoid and its cross
entropy, Adam as it comes, and a discriminator that is not frozen in the generator's turn. `compile`
is the same loop with both networks compiled. Ours is the step that `pyfastgan train dcgan` takes.
"""

from itertools import count

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan import data
from pyfastgan.gan import GAN, PRESETS
from pyfastgan.ops._registry import Row, ops

CONFIG = PRESETS["dcgan"]
BATCH, LATENT, WIDTH = CONFIG.batch_size, CONFIG.latent_dim, CONFIG.width


def generator():
    return nn.Sequential(
        nn.ConvTranspose2d(LATENT, 2 * WIDTH, 4, 1, 0, bias=False),
        nn.BatchNorm2d(2 * WIDTH),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def discriminator():
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * WIDTH),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(2 * WIDTH, 1, 4, 1, 0, bias=False),
        nn.Sigmoid(),
    )


def tutorial_step(images, prepare=lambda network: network):
    """A step of the tutorial's loop; `prepare` may compile the networks."""
    networks = generator(), discriminator()
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in networks
    ]
    make, judge = map(prepare, networks)
    improve_make, improve_judge = optimizers
    criterion = nn.BCELoss()
    real, fake = torch.ones(BATCH), torch.zeros(BATCH)

    def step():
        networks[1].zero_grad()
        criterion(judge(images).view(-1), real).backward()
        made = make(torch.randn(BATCH, LATENT, 1, 1))
        criterion(judge(made.detach()).view(-1), fake).backward()
        improve_judge.step()
        networks[0].zero_grad()
        criterion(judge(made).view(-1), real).backward()
        improve_make.step()

    return step


def our_step(images):
    system, fabric = GAN(CONFIG), Fabric(accelerator="cpu", devices=1)
    for name, network in system.networks.items():
        system.networks[name] = fabric.setup_module(network)
        system.optimizers[name] = fabric.setup_optimizers(system.optimizers[name])
    steps = count(1)
    return lambda: system.training_step(fabric, (images,), next(steps))


def test_step(measure, benchmark):
    images = data.load("digits", size=CONFIG.image_size).tensors[0][:BATCH]
    with FlopCounterMode(display=False) as counter:
        our_step(images)()
    row = Row(
        "DCGAN training step",
        f"digits {CONFIG.image_size} px, width {WIDTH}, batch {BATCH}",
        lambda: {
            "ours": our_step(images),
            "eager": tutorial_step(images),
            "compile": tutorial_step(images, torch.compile),
        },
        bytes=0,
        flops=counter.get_total_flops(),
    )
    result = measure(row, [ops()["bias_act"], ops()["random_normal"]])
    benchmark.extra_info |= result["ratios"]
    benchmark(our_step(images))
