"""VEEGAN (Srivastava et al. 2017): a reconstructor maps samples back to their latent vectors and data
to a normal distribution, so that a mode that is not drawn costs.

With generator G, reconstructor F and a discriminator of pairs D (algorithm 1 of the paper):

    D minimises  E softplus(-D(z, G(z))) + E softplus(D(F(x), x))
    G minimises  E D(z, G(z)) + weight E |z - F(G(z))|^2
    F minimises  E |z - F(G(z))|^2, with the same weight, which Adam does not see

D estimates the logarithm of the ratio of the two joint densities, and G brings it down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import Dataset

from pyfastgan.gan.dcgan import Generator
from pyfastgan.gan.mlp import MLPGenerator
from pyfastgan.gan.shaped import ShapedConfig, perceptron, shaped_data
from pyfastgan.nn import ConvBlock, FusedSequential
from pyfastgan.ops import random_normal
from pyfastgan.training import Run, load_weights
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import check_number

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(kw_only=True)
class VEEGANConfig(ShapedConfig):
    """How to train VEEGAN.

    Args:
        reconstruction_weight: Of the squared distance of latent vectors in the generator's loss.
    """

    batch_size: int = 64
    reconstruction_weight: float = 1.0
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("reconstruction_weight", self.reconstruction_weight, float, at_least=0)


PRESETS = {"veegan": VEEGANConfig(data="digits", steps=6000, width=32)}
POINT_PRESETS = {
    "veegan": VEEGANConfig(
        data="ring8", steps=10000, batch_size=512, width=128, latent_dim=2, sample_count=1000
    )
}


class Reconstructor(nn.Module):
    """Samples (N, *shape) to latent vectors (N, latent_dim)."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int, *, width: int) -> None:
        super().__init__()
        self.features, count = _features(shape, width)
        self.head = perceptron(count, 4 * width if len(shape) > 1 else width, latent_dim)

    def forward(self, samples: Tensor) -> Tensor:
        return self.head(self.features(samples))


class PairDiscriminator(nn.Module):
    """Latent vectors (N, latent_dim) and samples (N, *shape) to logits (N,): whether the sample was
    made of the latent vector, and not the latent vector of the sample."""

    def __init__(self, shape: tuple[int, ...], latent_dim: int, *, width: int) -> None:
        super().__init__()
        self.features, count = _features(shape, width)
        hidden = 4 * width if len(shape) > 1 else width
        self.head = perceptron(count + latent_dim, hidden, hidden, 1)

    def forward(self, latent: Tensor, samples: Tensor) -> Tensor:
        return self.head(torch.cat([latent, self.features(samples)], 1)).reshape(-1)


def _features(shape: tuple[int, ...], width: int) -> tuple[nn.Module, int]:
    """A network down to maps of 4 x 4, or a hidden layer of points, and how many numbers it gives."""
    if len(shape) == 1:
        return nn.Sequential(perceptron(shape[0], width), nn.ReLU()), width
    channels, size, _ = shape
    widths = [channels, *(width * 2**k for k in range(size.bit_length() - 3))]
    blocks = [ConvBlock(a, b, 4, 2, 1, act="leaky_relu", slope=0.2) for a, b in pairwise(widths)]
    for block in blocks:
        nn.init.kaiming_normal_(block.conv.weight, 0.2)
        nn.init.zeros_(block.conv.bias)
    return nn.Sequential(FusedSequential(*blocks), nn.Flatten()), widths[-1] * 16


class VEEGAN:
    """The system that the training loop drives: three networks, two optimizers."""

    averaged: tuple[str, ...] = ("generator",)
    period = 1

    def __init__(self, config: VEEGANConfig) -> None:
        self.config = config
        shape, latent_dim, width = config.shape, config.latent_dim, config.width
        self.networks: dict[str, nn.Module] = {
            "generator": _generator(config),
            "reconstructor": Reconstructor(shape, latent_dim, width=width),
            "discriminator": PairDiscriminator(shape, latent_dim, width=width),
        }
        players = [[self.networks["generator"], self.networks["reconstructor"]]]
        players.append([self.networks["discriminator"]])
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: Adam(
                [p for network in player for p in network.parameters()],
                config.learning_rate,
                config.betas,
            )
            for name, player in zip(("generator", "discriminator"), players, strict=True)
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of the discriminator, then one of the generator and the reconstructor, on the same
        samples."""
        config, real = self.config, batch[0]
        generator, reconstructor = self.networks["generator"], self.networks["reconstructor"]
        discriminator = self.networks["discriminator"]
        latent = random_normal(
            (len(real), config.latent_dim),
            config.seed,
            stream=step,
            sample_offset=fabric.global_rank * len(real),
            device=real.device,
        )
        fake = generator(latent)
        with torch.no_grad():
            encoded = reconstructor(real)
        judged = softplus(-discriminator(latent, fake.detach()))
        of_discriminator = (judged + softplus(discriminator(encoded, real))).mean()
        self._descend(fabric, "discriminator", of_discriminator)

        # Frozen, since the gradients of its weights would be computed only to be thrown away.
        discriminator.requires_grad_(False)
        adversarial = discriminator(latent, fake).mean()
        error = (latent - reconstructor(fake)).square().sum(1).mean()
        loss = adversarial + config.reconstruction_weight * error
        self._descend(fabric, "generator", loss)
        discriminator.requires_grad_(True)
        losses = {
            "discriminator_loss": of_discriminator,
            "generator_loss": adversarial,
            "reconstruction_error": error,
        }
        return {name: value.detach() for name, value in losses.items()}

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images in [-1, 1] or points; sample i is the same for any count."""
        return networks["generator"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """None beside the samples."""


def prepare_veegan(
    config: VEEGANConfig, own: Any
) -> tuple[VEEGANConfig, Dataset[Any], Callable[[], VEEGAN]]:
    """The configuration with what the data decide, the data, and what builds the system."""
    config, dataset = shaped_data(config, own)
    return config, dataset, lambda: VEEGAN(config)


def load_veegan(run: Run) -> nn.Module:
    """The generator of a run, on the CPU in evaluation mode."""
    assert isinstance(run.config, VEEGANConfig)
    generator = _generator(run.config).eval()
    load_weights(run.weights, {"generator": generator})
    return generator


def _generator(config: VEEGANConfig) -> nn.Module:
    if config.shape == (2,):
        return MLPGenerator(config.latent_dim, width=config.width)
    channels, size, _ = config.shape
    return Generator(size, channels=channels, width=config.width, latent_dim=config.latent_dim)
