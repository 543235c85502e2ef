"""A whole step of a DCGAN: both players and both optimizers. `memory_critic.py` has its memory.

Eager is PyTorch's DCGAN tutorial, on digits of 16 pixels and with its own networks of 64: layers of
`torch.nn`, a sigmoid and its cross entropy, Adam as it comes, and a discriminator that is not
frozen in the generator's turn. `eager, tuned` is the same loop channels-last with the discriminator
frozen, the best form of it; `compile` the loop with both networks compiled. Ours is the step that
`pyfastgan train dcgan` takes.
"""

from dataclasses import replace
from itertools import count, pairwise

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan import data
from pyfastgan.gan import GAN, PRESETS
from pyfastgan.ops._registry import Row, ops

DIGITS = replace(PRESETS["dcgan"], image_size=16, channels=1)
TUTORIAL = replace(DIGITS, image_size=64, channels=3, width=64, latent_dim=100, batch_size=64)
SERVED_BY = [ops()[name] for name in ("edge_conv", "conv_transpose_act", "norm_act", "bias_act")]


def _widths(config):
    doublings = config.image_size.bit_length() - 3
    return [config.width * 2**power for power in reversed(range(doublings))]


def generator(config):
    widths = _widths(config)
    layers = [nn.ConvTranspose2d(config.latent_dim, widths[0], 4, 1, 0, bias=False)]
    for a, b in pairwise((*widths, config.channels)):
        layers += [nn.BatchNorm2d(a), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


def discriminator(config):
    widths = _widths(config)[::-1]
    layers = [nn.Conv2d(config.channels, widths[0], 4, 2, 1, bias=False)]
    layers += [nn.LeakyReLU(0.2, inplace=True)]
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b)]
        layers += [nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False), nn.Sigmoid())


def tutorial_step(config, images, prepare=lambda network: network, tuned=False, bf16=False):
    """A step of the tutorial's loop; `prepare` may compile the networks."""
    networks = generator(config), discriminator(config)
    if tuned:
        networks = [net.to(memory_format=torch.channels_last) for net in networks]
        images = images.contiguous(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in networks
    ]
    make, judge = map(prepare, networks)
    improve_make, improve_judge = optimizers
    criterion = nn.BCELoss()
    real, fake = torch.ones(len(images)), torch.zeros(len(images))

    def judged(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return judge(x).view(-1)

    def step():
        networks[1].zero_grad()
        criterion(judged(images).float(), real).backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = make(torch.randn(len(images), config.latent_dim, 1, 1))
        criterion(judged(made.detach()).float(), fake).backward()
        improve_judge.step()
        networks[0].zero_grad()
        networks[1].requires_grad_(not tuned)
        criterion(judged(made).float(), real).backward()
        networks[1].requires_grad_(True)
        improve_make.step()

    return step


def our_step(config, images, precision="32-true"):
    system = GAN(config)
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    for name, network in system.networks.items():
        system.networks[name] = fabric.setup_module(network)
        system.optimizers[name] = fabric.setup_optimizers(system.optimizers[name])
    steps = count(1)
    return lambda: system.training_step(fabric, (images,), next(steps))


def images_for(config):
    if config is DIGITS:
        return data.load("digits", size=config.image_size).tensors[0][: config.batch_size]
    size = config.image_size
    return torch.rand(config.batch_size, config.channels, size, size) * 2 - 1


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("config", [DIGITS, TUTORIAL], ids=["digits", "tutorial"])
def test_step(measure, benchmark, request, config, bf16):
    images = images_for(config)
    with FlopCounterMode(display=False) as counter:
        tutorial_step(config, images, tuned=True)()  # torch's operators, which the counter knows
    precision = "bf16-mixed" if bf16 else "32-true"
    what = "digits" if config is DIGITS else "the tutorial's networks,"
    row = Row(
        "DCGAN training step" + (" bfloat16" if bf16 else ""),
        f"{what} {config.image_size} px, width {config.width}, batch {config.batch_size}",
        lambda: {
            "ours": our_step(config, images, precision),
            "eager": tutorial_step(config, images, bf16=bf16),
            "eager, tuned": tutorial_step(config, images, tuned=True, bf16=bf16),
            "compile": tutorial_step(config, images, torch.compile, bf16=bf16),
        },
        bytes=0,
        flops=counter.get_total_flops(),
    )
    # Compiling takes longer than measuring; with --quick there is none in bfloat16.
    compiled = not (bf16 and request.config.option.quick)
    result = measure(row, SERVED_BY, compile_eager=compiled)
    benchmark.extra_info |= result["ratios"]
    benchmark.pedantic(our_step(config, images, precision), rounds=3)
