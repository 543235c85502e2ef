"""A whole step of a VAE, on digits and on 64 pixels: the bound, its gradients, Adam.

Eager is the model as the field writes it: layers of `torch.nn`, exp, randn_like and the sums of both
losses written out, Adam as it comes. `compile` is the same with the forward pass and the losses
compiled. Ours is the step that `pyfastgan train vae` takes; pixels are drawn black or white in all.
"""

from dataclasses import replace
from itertools import count

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan import data
from pyfastgan.ops._registry import Row, ops
from pyfastgan.vae import PRESETS, VAESystem

CASES = {
    "digits": ("digits, 8 px, width 400, batch 128", PRESETS["vae"], 8),
    "64 px": (
        "64 px grey, width 32, latent 64, batch 64",
        replace(PRESETS["vae"], latent_dim=64),
        64,
    ),
}


class Plain(nn.Module):
    def __init__(self, latent, size):
        super().__init__()
        self.latent = latent
        if size == 8:
            self.encoder = nn.Sequential(
                nn.Flatten(),
                nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(),
                nn.Linear(400, 2 * latent),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                nn.Linear(latent, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(),
                nn.Linear(400, 64), nn.Unflatten(1, (1, 8, 8)),
            )  # fmt: skip
        else:
            self.encoder = nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
                nn.Conv2d(64, 128, 4, 2, 1), nn.ReLU(), nn.Conv2d(128, 256, 4, 2, 1), nn.ReLU(),
                nn.Flatten(), nn.Linear(4096, 2 * latent),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                nn.Linear(latent, 4096), nn.Unflatten(1, (256, 4, 4)), nn.ReLU(),
                nn.ConvTranspose2d(256, 128, 4, 2, 1), nn.ReLU(),
                nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU(),
                nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
                nn.ConvTranspose2d(32, 1, 4, 2, 1),
            )  # fmt: skip

    def forward(self, images):
        x = torch.bernoulli((images + 1) / 2)
        mean, logvar = self.encoder(2 * x - 1).chunk(2, 1)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        logits = self.decoder(z)
        nll = (
            functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
            .flatten(1)
            .sum(1)
        )
        kl = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1)
        return (nll + kl).mean()


def plain_step(images, latent, prepare=lambda network: network):
    network = Plain(latent, images.shape[-1])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss = prepare(network)

    def step():
        optimizer.zero_grad()
        loss(images).backward()
        optimizer.step()

    return step


def our_step(images, config):
    config = replace(config, image_size=images.shape[-1], channels=1)
    dataset = data.load(images)
    system, fabric = VAESystem(config, dataset, None), Fabric(accelerator="cpu", devices=1)
    system.networks["model"] = fabric.setup_module(system.networks["model"])
    system.optimizers["model"] = fabric.setup_optimizers(system.optimizers["model"])
    steps = count(1)
    return lambda: system.training_step(fabric, (images,), next(steps))


@pytest.mark.parametrize("case", CASES)
def test_step(measure, benchmark, case):
    shape, config, size = CASES[case]
    images = data.load("digits", size=size).tensors[0][: 128 if size == 8 else 64]
    with FlopCounterMode(display=False) as counter:
        our_step(images, config)()
    row = Row(
        "VAE training step",
        shape,
        lambda: {
            "ours": our_step(images, config),
            "eager": plain_step(images, config.latent_dim),
            "compile": plain_step(images, config.latent_dim, torch.compile),
        },
        bytes=0,
        flops=counter.get_total_flops(),
    )
    result = measure(row, [ops()["reparameterize"], ops()["bernoulli_nll"]])
    benchmark.extra_info |= result["ratios"]
    benchmark(our_step(images, config))
