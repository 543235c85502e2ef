"""Training class-conditional GANs: on DCGAN's networks, or BigGAN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan import data as data_sets
from pyfastgan.gan.augment import diff_augment, smoothing_loss
from pyfastgan.gan.biggan import BigGANDiscriminator, BigGANGenerator
from pyfastgan.gan.conditional_config import ConditionalConfig
from pyfastgan.gan.conditional_networks import ConditionalDiscriminator, ConditionalGenerator
from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.objectives import discriminator_loss, generator_loss, get_objective
from pyfastgan.gan.orthogonal import add_orthogonal_gradients
from pyfastgan.gan.penalties import gradient_penalty
from pyfastgan.ops import random_normal
from pyfastgan.training import Run, load_weights, save_png
from pyfastgan.training.adam import Adam
from pyfastgan.training.grids import image_grid
from pyfastgan.training.rng import derive_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SHOWN_CLASSES, _COLUMNS = 10, 10
_THRESHOLDS = (0.0, 0.5, 1.0, 2.0)
# Uses of noise under one seed, each with a stream a step.
_REAL, _FAKE, _GENERATORS, _PENALTY = range(1, 5)

PRESETS = {
    "cgan": ConditionalConfig(
        data="digits", width=32, steps=6000, learning_rate=5e-4, sample_count=100
    ),
    # Networks and batches this small need no fewer classes, but fewer channels and higher rates.
    "biggan": ConditionalConfig(
        data="digits",
        architecture="biggan",
        conditioning="projection",
        width=16,
        latent_dim=60,
        embedding=32,
        steps=4000,
        objective="hinge",
        orthogonal=1e-4,
        discriminator_steps=2,
        learning_rate=2e-4,
        discriminator_learning_rate=5e-4,
        betas=(0.0, 0.999),
        sample_count=100,
    ),
}


class ConditionalGAN:
    """The system that the training loop drives.

    Args:
        config: With the shapes of the images and the number of classes.
    """

    averaged: tuple[str, ...] = ("generator",)

    def __init__(self, config: ConditionalConfig) -> None:
        self.config = config
        discriminator = _discriminator(config)
        self.networks: dict[str, nn.Module] = {
            "generator": _generator(config),
            "discriminator": discriminator,
        }
        # Batch norm is to see real and generated images apart.
        self.together = not any(isinstance(m, nn.BatchNorm2d) for m in discriminator.modules())
        rates = {"generator": config.learning_rate, "discriminator": config.learning_rate}
        if config.discriminator_learning_rate is not None:
            rates["discriminator"] = config.discriminator_learning_rate
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: Adam(network.parameters(), rates[name], config.betas)
            for name, network in self.networks.items()
        }

    @property
    def period(self) -> int:
        """Of the generator's turns."""
        return self.config.discriminator_steps

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of the discriminator, and of the generator if it is its turn; generated images have
        the labels of the real ones. A batch in one part is generated once for both."""
        config = self.config
        generators_turn = step % config.discriminator_steps == 0
        once = generators_turn and config.accumulate == 1
        start = fabric.global_rank * len(batch[0])
        parts = []  # images, labels, and the place of the first in the global batch
        for images, labels in zip(*(part.chunk(config.accumulate) for part in batch), strict=True):
            parts.append((images, labels, start))
            start += len(images)

        losses: dict[str, Tensor] = {}
        self.optimizers["discriminator"].zero_grad()
        made: list[Tensor] = []
        for real, labels, place in parts:
            with torch.set_grad_enabled(once):
                fake = self._generate(labels, step, place)
            made.append(fake)
            loss = self._discriminator_loss(fabric, real, fake.detach(), labels, step, place)
            self._backward(fabric, loss, losses)
        self.optimizers["discriminator"].step()
        if not generators_turn:
            return losses

        discriminator = self.networks["discriminator"]
        # Frozen, since the gradients of its weights would be computed only to be thrown away.
        discriminator.requires_grad_(False)
        self.optimizers["generator"].zero_grad()
        for real, labels, place in parts:
            fake = made[0] if once else self._generate(labels, step, place)
            self._backward(fabric, self._generator_loss(real, fake, labels, step, place), losses)
        if config.orthogonal > 0:
            generator = self.networks["generator"]
            add_orthogonal_gradients(_regularised(generator), config.orthogonal)
        self.optimizers["generator"].step()
        discriminator.requires_grad_(True)
        return losses

    def _backward(
        self, fabric: Fabric, found: dict[str, Tensor], losses: dict[str, Tensor]
    ) -> None:
        """Gradients of the sum of what was found, as one of the batch's equal parts."""
        parts = self.config.accumulate
        fabric.backward(sum(found.values(), start=torch.zeros(())) / parts)
        for name, value in found.items():
            losses[name] = losses.get(name, 0) + value.detach() / parts

    def _generate(self, labels: Tensor, step: int, place: int) -> Tensor:
        # Keyed by the step and the place in the global batch, so that noise depends neither on
        # where a run was interrupted nor on the number of ranks or parts.
        latent = random_normal(
            (len(labels), self.config.latent_dim),
            self.config.seed,
            stream=step,
            sample_offset=place,
            device=labels.device,
        )
        return self.networks["generator"](latent, labels)

    def _shown(self, images: Tensor, use: int, step: int, place: int) -> Tensor:
        """The images as the discriminator sees them."""
        seed = derive_seed(self.config.seed, use)
        policy = self.config.augment
        return diff_augment(images, policy, seed=seed, stream=step, sample_offset=place)

    def _judged(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores, and the logits of the classes if there are any."""
        found = self.networks["discriminator"](images, labels)
        return found if isinstance(found, tuple) else (found, None)

    def _discriminator_loss(
        self, fabric: Fabric, real: Tensor, fake: Tensor, labels: Tensor, step: int, place: int
    ) -> dict[str, Tensor]:
        config = self.config
        real = self._shown(real, _REAL, step, place)
        fake = self._shown(fake, _FAKE, step, place).to(real.dtype)
        twice = torch.cat([labels, labels])
        if self.together:
            scores, classes = self._judged(torch.cat([real, fake]), twice)
            of_real, of_fake = scores.split(len(real))
        else:
            (of_real, first), (of_fake, second) = (
                self._judged(images, labels) for images in (real, fake)
            )
            classes = None if first is None or second is None else torch.cat([first, second])
        loss = discriminator_loss(config.objective, of_real, of_fake)
        if config.label_smoothing > 0:
            loss = loss + smoothing_loss(config.label_smoothing, of_real)
        found = {"discriminator_loss": loss}
        if classes is not None:
            # Of the real half and of the generated one, added as in the paper.
            found["discriminator_classes"] = (
                2 * config.classifier_weight * functional.cross_entropy(classes.float(), twice)
            )
        if config.penalty != "none" and step % config.penalty_interval == 0:
            network = self.networks["discriminator"]
            critic = getattr(network, "module", network)
            with fabric.autocast():
                found["penalty"] = gradient_penalty(
                    lambda x, y: _first(critic(x, y)),
                    real.to(next(critic.parameters()).dtype),
                    fake.to(next(critic.parameters()).dtype),
                    penalty=config.penalty,
                    weight=config.penalty_weight,
                    interval=config.penalty_interval,
                    condition=labels,
                    seed=derive_seed(config.seed, _PENALTY),
                    stream=step,
                    sample_offset=place,
                )
        return found

    def _generator_loss(
        self, real: Tensor, fake: Tensor, labels: Tensor, step: int, place: int
    ) -> dict[str, Tensor]:
        config = self.config
        scores, classes = self._judged(self._shown(fake, _GENERATORS, step, place), labels)
        of_real = None
        if get_objective(config.objective).pairs:
            of_real, _ = self._judged(self._shown(real, _REAL, step, place), labels)
        found = {"generator_loss": generator_loss(config.objective, scores, of_real)}
        if classes is not None:
            found["generator_classes"] = config.classifier_weight * functional.cross_entropy(
                classes.float(), labels
            )
        return found

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, channels, size, size) in [-1, 1], of the classes in turns."""
        return _own(networks["generator"]).sample(count, seed)

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Save `interpolation.png`, on each row the way from one latent vector to another in one
        class, and `truncation.png`: a row each of latent numbers up to 0, 1/2, 1 and 2, and of all."""
        generator = _own(networks["generator"])
        classes = min(generator.classes, _SHOWN_CLASSES)
        ends = generator.latents(2 * classes, self.config.seed)
        walks = interpolate(ends[:classes], ends[classes:], _COLUMNS)
        labels = torch.arange(classes, device=ends.device).repeat_interleave(_COLUMNS)
        generator.sample(1, self.config.seed)  # for its statistics
        with torch.no_grad():
            images = generator(walks.flatten(0, 1), labels)
        save_png(image_grid(images, columns=_COLUMNS), folder / "interpolation.png")
        rows = [
            generator.sample(_COLUMNS, self.config.seed, threshold)
            for threshold in (*_THRESHOLDS, None)
        ]
        save_png(image_grid(torch.cat(rows), columns=_COLUMNS), folder / "truncation.png")


def _own(generator: nn.Module) -> Any:
    """A copy, as the statistics that BigGAN samples by are not those of its training."""
    return copy.deepcopy(generator).eval()


def _first(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def _regularised(generator: nn.Module) -> list[Tensor]:
    inner = getattr(generator, "module", generator)
    if isinstance(inner, BigGANGenerator):
        return inner.regularised()
    return [p for p in inner.parameters() if p.ndim > 1]


def _generator(config: ConditionalConfig) -> ConditionalGenerator | BigGANGenerator:
    size = {"width": config.width, "latent_dim": config.latent_dim}
    if config.architecture == "biggan":
        return BigGANGenerator(**config.shapes, **size, embedding=config.embedding)
    return ConditionalGenerator(**config.shapes, **size)


def _discriminator(config: ConditionalConfig) -> ConditionalDiscriminator | BigGANDiscriminator:
    if config.architecture == "biggan":
        return BigGANDiscriminator(**config.shapes, width=config.width)
    return ConditionalDiscriminator(
        **config.shapes,
        width=config.width,
        conditioning=config.conditioning,
        norm="batch" if config.discriminator_norm else None,
    )


def prepare_conditional(
    config: ConditionalConfig, own: Any
) -> tuple[ConditionalConfig, Any, Callable[[], ConditionalGAN]]:
    """The configuration with what the data decide, the data, and what builds the system.

    Raises `ValueError` for data without labels, with more classes than the configuration has, and for
    images of another shape.
    """
    dataset = sized_images(config, own, config.sizes)
    if dataset.classes is None:
        raise ValueError("data must have labels for a conditional model, got none")
    if config.classes is not None and dataset.classes > config.classes:
        raise ValueError(
            f"labels must be below classes={config.classes}, the data have {dataset.classes} classes"
        )
    channels, size, _ = dataset.shape
    config = replace(
        config, image_size=size, channels=channels, classes=config.classes or dataset.classes
    )
    return config, dataset, lambda: ConditionalGAN(config)


def sized_images(config: Any, own: Any, sizes: tuple[int, ...]) -> Any:
    """The data of a configuration with `image_size` and `channels`, square and of one of the sizes.

    Raises `ValueError` for data of another shape.
    """
    size = config.image_size
    if own is not None:
        dataset = own
    elif config.data == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    elif config.data in data_sets.TOYS:
        dataset = data_sets.load(config.data)
    elif size is not None:
        dataset = data_sets.load(config.data, size=size)
    else:
        dataset = data_sets.load(config.data)
        least = max(16, *dataset.shape[1:])
        size = next((s for s in sizes if s >= least), sizes[-1])
        if dataset.shape[1:] != (size, size):
            dataset = data_sets.load(config.data, size=size)
    shape = dataset.shape
    fits = len(shape) == 3 and shape[1] == shape[2] and shape[1] in sizes
    if not fits or size not in (None, shape[1]) or config.channels not in (None, shape[0]):
        wanted = "a size among " + ", ".join(map(str, sizes)) if size is None else str(size)
        raise ValueError(
            f"data must be square images of {wanted} pixels and {config.channels or '1 or 3'}"
            f" channels, got items of shape {shape}"
        )
    return dataset


def load_conditional(run: Run) -> nn.Module:
    """The generator of a run, on the CPU in evaluation mode."""
    config = run.config
    assert isinstance(config, ConditionalConfig)
    generator = _generator(config).eval()
    load_weights(run.weights, {"generator": generator})
    return generator
