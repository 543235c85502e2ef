"""Training by progressive growing: from 4 x 4 pixels upwards, in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.gan.augment import diff_augment, parse_policy
from pyfastgan.gan.conditional import sized_images
from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.objectives import discriminator_loss, generator_loss
from pyfastgan.gan.penalties import gradient_penalty
from pyfastgan.gan.progressive import START, GrowingDiscriminator, GrowingGenerator
from pyfastgan.gan.translation import check_betas
from pyfastgan.gan.translation_networks import check_power_of_two
from pyfastgan.ops import random_normal
from pyfastgan.training import Run, TrainConfig, load_weights, save_png
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import check_number
from pyfastgan.training.grids import image_grid
from pyfastgan.training.rng import derive_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_OBJECTIVE, _PENALTY = "wgan", "wgan-gp"
_ROWS, _COLUMNS = 8, 10
_LARGEST = 1024
_EPS = 1e-8  # Adam's
# Uses of noise under one seed, each with a stream a step.
_REAL, _FAKE, _GENERATORS, _POINTS = range(1, 5)


@dataclass(kw_only=True)
class ProgressiveConfig(TrainConfig):
    """How to train by progressive growing; the defaults are the paper's where it has one.

    The first `phase_steps` steps are at 4 x 4 pixels. Then each resolution fades in for as many and is
    trained for as many, up to `image_size`, at which the remaining steps are taken.

    Args:
        image_size: Pixels a side in the end, a power of two from 4 to 1024; by default the smallest,
            from 16 on, that holds the data's own images.
        channels: Of the images; by default as the data have.
        width: Channels of the maps up to 32 pixels; each doubling from there on leaves half.
        latent_dim: Numbers in a latent vector.
        phase_steps: Steps of a phase.
        penalty_weight: Of the gradient penalty (wgan-gp).
        drift: Of the mean square of the scores of real images, which keeps them near 0.
        group_size: Images that the discriminator compares.
        augment: As in `ConditionalConfig`.
        learning_rate, betas: Of Adam, for both networks.
    """

    image_size: int | None = None
    channels: int | None = None
    width: int = 512
    latent_dim: int = 512
    phase_steps: int = 800
    penalty_weight: float = 10.0
    drift: float = 1e-3
    group_size: int = 4
    augment: str = "none"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.99)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None:
            check_power_of_two("image_size", self.image_size, at_least=START)
        if self.channels is not None:
            check_number("channels", self.channels, int, at_least=1)
        for name in ("width", "latent_dim", "phase_steps", "group_size"):
            check_number(name, getattr(self, name), int, at_least=1)
        for name in ("penalty_weight", "drift", "learning_rate"):
            check_number(name, getattr(self, name), float, at_least=0)
        parse_policy(self.augment)
        check_betas(self.betas)
        self.betas = (self.betas[0], self.betas[1])

    @property
    def shape(self) -> tuple[int, int]:
        """The size and the channels, without which there are no networks."""
        if self.image_size is None or self.channels is None:
            raise ValueError(
                "image_size and channels must be given where there are no data to take them from,"
                f" got {self.image_size} and {self.channels}"
            )
        return self.image_size, self.channels


PRESETS = {
    "progan": ProgressiveConfig(
        data="digits",
        image_size=16,
        width=32,
        latent_dim=32,
        batch_size=32,
        steps=4000,
        phase_steps=500,
    )
}


def phase_at(step: int, phase_steps: int, image_size: int) -> tuple[int, int, int]:
    """The resolution at a step, counted from 1, and the alpha with which it fades in, as a fraction:
    (resolution, numerator, denominator)."""
    phase, within = divmod(step - 1, phase_steps)
    resolution = START * 2 ** ((phase + 1) // 2)
    if resolution > image_size:
        return image_size, phase_steps, phase_steps
    fading = phase % 2 == 1
    return resolution, within + 1 if fading else phase_steps, phase_steps


class ProgressiveGAN:
    """The system that the training loop drives.

    Args:
        config: With the shape of the images.

    Attributes:
        phase: The name of the phase that training is in.
    """

    averaged: tuple[str, ...] = ("generator",)

    def __init__(self, config: ProgressiveConfig) -> None:
        self.config, self.phase = config, ""
        size, channels = config.shape
        self.networks: dict[str, nn.Module] = {
            "generator": _generator(config),
            "discriminator": GrowingDiscriminator(
                size, channels=channels, width=config.width, group_size=config.group_size
            ),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: Adam(network.parameters(), config.learning_rate, config.betas, _EPS)
            for name, network in self.networks.items()
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of each network at the resolution that is due; both see the same generated images."""
        config = self.config
        resolution, share, whole = phase_at(step, config.phase_steps, config.shape[0])
        alpha = share / whole
        self._enter((resolution, share, whole), step)
        place = fabric.global_rank * len(batch[0])
        real = shrunk(batch[0], resolution, alpha)
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        # Keyed by the step and the place in the global batch, so that noise depends neither on
        # where a run was interrupted nor on the number of ranks.
        latent = random_normal(
            (len(real), config.latent_dim),
            config.seed,
            stream=step,
            sample_offset=place,
            device=real.device,
        )
        fake = generator(latent, resolution, alpha)
        real = self._shown(real, _REAL, step, place)
        seen = self._shown(fake.detach(), _FAKE, step, place)
        of_real, of_fake = discriminator(real, alpha), discriminator(seen, alpha)
        adversarial = discriminator_loss(_OBJECTIVE, of_real, of_fake)
        critic = getattr(discriminator, "module", discriminator)
        dtype = next(critic.parameters()).dtype
        with fabric.autocast():
            penalty = gradient_penalty(
                lambda x: critic(x, alpha),
                real.to(dtype),
                seen.to(dtype),
                penalty=_PENALTY,
                weight=config.penalty_weight,
                seed=derive_seed(config.seed, _POINTS),
                stream=step,
                sample_offset=place,
            )
        drift = config.drift * of_real.float().square().mean()
        self._descend(fabric, "discriminator", adversarial + penalty + drift)

        # Frozen, since the gradients of its weights would be computed only to be thrown away.
        discriminator.requires_grad_(False)
        shown = self._shown(fake, _GENERATORS, step, place)
        loss = generator_loss(_OBJECTIVE, discriminator(shown, alpha))
        self._descend(fabric, "generator", loss)
        discriminator.requires_grad_(True)
        return {
            "wasserstein_estimate": -adversarial.detach(),
            "penalty": penalty.detach(),
            "generator_loss": loss.detach(),
            "resolution": loss.new_tensor(float(resolution)),
            "alpha": loss.new_tensor(alpha),
        }

    def _enter(self, phase: tuple[int, int, int], step: int) -> None:
        """Name the phase, and tell the generator, whose average and weights are to know it."""
        resolution, share, whole = phase
        state = f"fading in, alpha {share / whole:.4f}" if share < whole else "faded in"
        self.phase = f"{resolution}x{resolution}, {state}, step {step}"
        generator = self.networks["generator"]
        held: Any = getattr(generator, "module", generator).phase
        held.copy_(torch.tensor(phase))

    def _shown(self, images: Tensor, use: int, step: int, place: int) -> Tensor:
        seed = derive_seed(self.config.seed, use)
        policy = self.config.augment
        return diff_augment(images, policy, seed=seed, stream=step, sample_offset=place)

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, channels, resolution, resolution) of the current phase."""
        return networks["generator"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Save `interpolation.png`, on each row the way from one image to another."""
        generator = networks["generator"]
        assert isinstance(generator, GrowingGenerator)
        ends = generator.latents(2 * _ROWS, self.config.seed)
        walks = interpolate(ends[:_ROWS], ends[_ROWS:], _COLUMNS)
        with torch.no_grad():
            images = generator(walks.flatten(0, 1))
        save_png(image_grid(images, columns=_COLUMNS), folder / "interpolation.png")


def shrunk(images: Tensor, resolution: int, alpha: float) -> Tensor:
    """Images as the discriminator is to see them while `resolution` fades in: averages of pixels,
    and with alpha below 1 as much of the finer ones as the generator can draw."""
    images = functional.avg_pool2d(images, images.shape[-1] // resolution)
    if alpha >= 1:
        return images
    coarse = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2)
    return torch.lerp(coarse, images, alpha)


def _generator(config: ProgressiveConfig) -> GrowingGenerator:
    size, channels = config.shape
    return GrowingGenerator(
        size, channels=channels, width=config.width, latent_dim=config.latent_dim
    )


def prepare_progressive(
    config: ProgressiveConfig, own: Any
) -> tuple[ProgressiveConfig, Any, Callable[[], ProgressiveGAN]]:
    """The configuration with what the data decide, the data, and what builds the system.

    Raises `ValueError` for images of another shape.
    """
    sizes = tuple(2**k for k in range(2, _LARGEST.bit_length()))
    dataset = sized_images(config, own, sizes)
    channels, size, _ = dataset.shape
    config = replace(config, image_size=size, channels=channels)
    return config, dataset, lambda: ProgressiveGAN(config)


def load_progressive(run: Run) -> nn.Module:
    """The generator of a run, in the phase that its training was in, on the CPU in evaluation mode."""
    config = run.config
    assert isinstance(config, ProgressiveConfig)
    generator = _generator(config).eval()
    load_weights(run.weights, {"generator": generator})
    return generator
