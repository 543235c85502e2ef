"""pix2pix (Isola et al. 2017, "Image-to-image translation with conditional adversarial networks"): a
U-Net and a discriminator of patches that sees the given image beside the made one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyfastgan.gan.objectives import discriminator_loss, generator_loss, get_objective
from pyfastgan.gan.translation import (
    TranslationConfig,
    Translator,
    TwoKinds,
    given_images,
    side_by_side,
    some_of,
)
from pyfastgan.gan.translation_networks import PatchDiscriminator, UNet
from pyfastgan.training import Run, load_weights
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import check_number

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(kw_only=True)
class Pix2PixConfig(TranslationConfig):
    """How to train pix2pix; the defaults are the paper's.

    Args:
        l1_weight: Of the mean absolute difference from the image that belongs to the given one; lambda
            of the paper's equation 4.
        objective: A name of `pyfastgan.gan.OBJECTIVES`.
    """

    l1_weight: float = 100.0
    objective: str = "non-saturating"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("l1_weight", self.l1_weight, float, at_least=0)
        get_objective(self.objective)


PRESETS = {
    "pix2pix": Pix2PixConfig(
        data="edges2photos",
        steps=3000,
        batch_size=16,
        width=32,
        discriminator_layers=2,
        sample_count=20,
    )
}


class Pix2Pix:
    """The system that the training loop drives.

    Args:
        config: With the shapes of the images.
        shown: Pairs that pictures are drawn of: rows of the given image, the made one and the one that
            belongs to it.
    """

    averaged: tuple[str, ...] = ("generator",)
    two_kinds = True
    period = 1

    def __init__(self, config: Pix2PixConfig, shown: TwoKinds) -> None:
        self.config, self.shown = config, some_of(shown, config.sample_count)
        _, given, made = config.shapes
        layers = config.discriminator_layers
        self.networks: dict[str, nn.Module] = {
            "generator": _generator(config),
            "discriminator": PatchDiscriminator(given + made, width=config.width, layers=layers),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: Adam(network.parameters(), config.learning_rate, config.betas)
            for name, network in self.networks.items()
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of the discriminator, whose loss is halved, and one of the generator."""
        given, real = batch
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        objective = self.config.objective
        fake = generator(given)
        real_pair = torch.cat([given, real], 1)
        # Apart, since batch norm sees real and generated images apart.
        judged = discriminator(real_pair), discriminator(torch.cat([given, fake.detach()], 1))
        of_discriminator = discriminator_loss(objective, *judged) / 2
        self._descend(fabric, "discriminator", of_discriminator)

        # Frozen, since the gradients of its weights would be computed only to be thrown away.
        discriminator.requires_grad_(False)
        of_real = discriminator(real_pair) if get_objective(objective).pairs else None
        adversarial = generator_loss(objective, discriminator(torch.cat([given, fake], 1)), of_real)
        l1 = (fake - real).abs().mean()
        self._descend(fabric, "generator", adversarial + self.config.l1_weight * l1)
        discriminator.requires_grad_(True)
        losses = {
            "discriminator_loss": of_discriminator,
            "generator_loss": adversarial,
            "l1": l1,
        }
        return {name: loss.detach() for name, loss in losses.items()}

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, 3 W): a given image, what is made of it, and what belongs to it."""
        generator = networks["generator"]
        device = next(generator.parameters()).device
        given, real = (part[:count].to(device) for part in self.shown)
        return side_by_side(given, generator(given), real)

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """None beside the samples."""


def _generator(config: Pix2PixConfig) -> UNet:
    size, given, made = config.shapes
    return UNet(size, in_channels=given, out_channels=made, width=config.width)


def load_pix2pix(run: Run) -> Translator:
    """The model of a run, on the CPU in evaluation mode."""
    config = run.config
    assert isinstance(config, Pix2PixConfig)
    generator = _generator(config).eval()
    load_weights(run.weights, {"generator": generator})
    return Translator(generator, None, given_images(config)).eval()
