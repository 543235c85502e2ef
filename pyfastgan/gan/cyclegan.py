"""CycleGAN (Zhu et al. 2017, "Unpaired image-to-image translation using cycle-consistent adversarial
networks"): a generator each way, and a discriminator at each end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyfastgan.gan.objectives import discriminator_loss, generator_loss
from pyfastgan.gan.translation import (
    TranslationConfig,
    Translator,
    TwoKinds,
    given_images,
    side_by_side,
    some_of,
)
from pyfastgan.gan.translation_networks import PatchDiscriminator, ResNetGenerator
from pyfastgan.ops import random_uniform
from pyfastgan.training import Run, load_weights, save_png
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import check_number
from pyfastgan.training.grids import image_grid

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_OBJECTIVE = "least-squares"
# The generators' squares in the paper's equation are whole, the discriminators' halved; those of the
# table of objectives are halved for both.
_WHOLE = 2.0


@dataclass(kw_only=True)
class CycleGANConfig(TranslationConfig):
    """How to train a CycleGAN; the defaults are the paper's.

    The learning rate is constant for the first half of the steps, and falls to 0 in the second.

    Args:
        blocks: Residual blocks of a generator.
        cycle_weight: Of the mean absolute difference between an image and what comes of it on the way
            there and back; lambda of the paper's equation 3.
        identity_weight: Of the mean absolute difference between an image and what the generator of its
            own kind makes of it, in units of `cycle_weight`. Needs images of as many channels.
        history: Images that a discriminator's history holds; 0 for none.
    """

    blocks: int = 9
    cycle_weight: float = 10.0
    identity_weight: float = 0.5
    history: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("blocks", self.blocks, int, at_least=0)
        check_number("history", self.history, int, at_least=0)
        for name in ("cycle_weight", "identity_weight"):
            check_number(name, getattr(self, name), float, at_least=0)
        if self.identity_weight > 0 and self.in_channels != self.out_channels:
            raise ValueError(
                "identity_weight needs images of as many channels on both sides, got"
                f" {self.in_channels} and {self.out_channels}; 0 leaves that loss out"
            )


PRESETS = {
    "cyclegan": CycleGANConfig(
        data="digits2bold",
        steps=2000,
        batch_size=4,
        width=16,
        blocks=3,
        discriminator_layers=2,
        sample_count=20,
    )
}


class ImageHistory(nn.Module):
    """Generated images of earlier steps, for a discriminator to judge (Shrivastava et al. 2017).

    Until it holds `size` images it keeps each one and hands it on. Then it hands on each image with
    probability 1/2, or else one of its own, drawn evenly, whose place the new image takes.

    Args:
        size: How many; 0 hands everything on.
        shape: Of an image.

    Its state, which a checkpoint holds, is the images and their number.
    """

    images: Tensor
    held: Tensor

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """What a discriminator is to judge instead of the images.

        Args:
            images: (N, *shape).
            draws: (N, 2), uniform in [0, 1): whether to swap each image, and for which. On the CPU,
                so that no device is waited for.
        """
        size, held = len(self.images), int(self.held)
        if size == 0:
            return images
        out = images.clone()
        for place, (swap, which) in enumerate(draws.tolist()):
            if held < size:
                self.images[held] = images[place]
                held += 1
            elif swap < 0.5:
                other = min(int(which * size), size - 1)
                out[place] = self.images[other]
                self.images[other] = images[place]
        self.held.fill_(held)
        return out


class CycleGAN:
    """The system that the training loop drives; arguments as those of `Pix2Pix`."""

    averaged: tuple[str, ...] = ("first_to_second", "second_to_first")
    two_kinds = True

    def __init__(self, config: CycleGANConfig, shown: TwoKinds) -> None:
        self.config, self.shown = config, some_of(shown, config.sample_count)
        size, first, second = config.shapes
        width, layers = config.width, config.discriminator_layers
        judges = {
            name: PatchDiscriminator(channels, width=width, layers=layers, norm="instance")
            for name, channels in (("judge_first", first), ("judge_second", second))
        }
        generators = dict(zip(self.averaged, _generators(config), strict=True))
        self.networks: dict[str, nn.Module] = {
            **generators,
            **judges,
            "history_first": ImageHistory(config.history, (first, size, size)),
            "history_second": ImageHistory(config.history, (second, size, size)),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: Adam(
                [p for network in networks for p in network.parameters()],
                config.learning_rate,
                config.betas,
            )
            for name, networks in (
                ("generators", generators.values()),
                ("judges", judges.values()),
            )
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of both generators, and then of both discriminators."""
        config = self.config
        first, second = batch
        self._set_rate(step)
        judges = [self.networks["judge_first"], self.networks["judge_second"]]
        # Frozen, since the gradients of their weights would be computed only to be thrown away.
        for judge in judges:
            judge.requires_grad_(False)
        fakes, losses = self._generators_losses(first, second, judges)
        total = losses["generator_loss"] + config.cycle_weight * losses["cycle"]
        if "identity" in losses:
            total = total + config.cycle_weight * config.identity_weight * losses["identity"]
        self._descend(fabric, "generators", total)

        of_judges = []
        for k, (judge, real, fake) in enumerate(zip(judges, (first, second), fakes, strict=True)):
            judge.requires_grad_(True)
            history = self.networks[("history_first", "history_second")[k]]
            draws = random_uniform(
                (len(fake), 2),
                config.seed,
                stream=2 * step + k,
                sample_offset=fabric.global_rank * len(fake),
            )
            shown = history(fake.detach(), draws)
            # One pass: instance norm keeps images apart.
            of_real, of_fake = judge(torch.cat([real, shown])).split(len(real))
            of_judges.append(discriminator_loss(_OBJECTIVE, of_real, of_fake))
        losses["discriminator_loss"] = of_judges[0] + of_judges[1]
        self._descend(fabric, "judges", losses["discriminator_loss"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _generators_losses(
        self, first: Tensor, second: Tensor, judges: list[nn.Module]
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """The generated images of both kinds, and the losses."""
        forth, back = (self.networks[name] for name in self.averaged)
        count, losses = len(first), {}
        if self.config.identity_weight > 0:
            # One pass a generator makes the translation and the identity: instance norm keeps images
            # apart.
            fake_second, same_second = forth(torch.cat([first, second])).split(count)
            fake_first, same_first = back(torch.cat([second, first])).split(count)
            losses["identity"] = _distance(same_first, first) + _distance(same_second, second)
        else:
            fake_second, fake_first = forth(first), back(second)
        losses["cycle"] = _distance(back(fake_second), first) + _distance(forth(fake_first), second)
        fakes = fake_first, fake_second
        losses["generator_loss"] = _WHOLE * sum(
            (generator_loss(_OBJECTIVE, judge(fake)) for judge, fake in zip(judges, fakes)),
            start=first.new_zeros(()),
        )
        return fakes, losses

    def _set_rate(self, step: int) -> None:
        left = 2 * (1 - (step - 1) / self.config.steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * min(1.0, left)

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, 3 W): a first image, what is made of it, and what of that again."""
        return self._there_and_back(networks, 0, count)

    def _there_and_back(self, networks: dict[str, nn.Module], kind: int, count: int) -> Tensor:
        ways = [networks[name] for name in self.averaged]
        forth, back = ways if kind == 0 else ways[::-1]
        device = next(forth.parameters()).device
        given = self.shown[kind][:count].to(device)
        made = forth(given)
        return side_by_side(given, made, back(made))

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Write `inverse.png`: images of the second kind, what is made of them, and what of that."""
        drawn = self._there_and_back(networks, 1, self.config.sample_count)
        save_png(image_grid(drawn), folder / "inverse.png")


def _distance(made: Tensor, wanted: Tensor) -> Tensor:
    return (made - wanted).abs().mean()


def _generators(config: CycleGANConfig) -> list[nn.Module]:
    size, first, second = config.shapes
    return [
        ResNetGenerator(
            size, in_channels=a, out_channels=b, width=config.width, blocks=config.blocks
        )
        for a, b in ((first, second), (second, first))
    ]


def load_cyclegan(run: Run) -> Translator:
    """The model of a run, on the CPU in evaluation mode."""
    config = run.config
    assert isinstance(config, CycleGANConfig)
    networks = dict(zip(CycleGAN.averaged, _generators(config), strict=True))
    load_weights(run.weights, networks)
    forth, back = networks.values()
    return Translator(forth, back, given_images(config)).eval()
