"""Training a DCGAN: the configuration, its presets, and algorithm 1 of Goodfellow et al. 2014."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pyfastgan import data as data_sets
from pyfastgan._names import check_choice
from pyfastgan.data import ImageData, MapData, TensorData
from pyfastgan.gan.dcgan import IMAGE_SIZES, Discriminator, Generator
from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.objectives import discriminator_loss, generator_loss, get_objective
from pyfastgan.ops import random_normal
from pyfastgan.training import (
    Run,
    TrainConfig,
    fit,
    image_grid,
    load_weights,
    resolve_config,
    save_png,
)
from pyfastgan.training.config import check_number

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The model's name in a run whose configuration was not chosen by the name of a preset.
_NAME = "dcgan"
_ROWS, _COLUMNS = 8, 10


@dataclass(kw_only=True)
class GANConfig(TrainConfig):
    """How to train a DCGAN; the defaults are those of Radford et al. 2015 where the paper has one.

    Args:
        image_size: Pixels a side: 8, 16, 32, 64 or 128. By default the smallest of these, from 16
            on, that holds the data's own images.
        channels: Of the images, 1 for grey ones; by default as the data have.
        width: Channels of the maps of half the image size; every halving of the map doubles them.
        latent_dim: Numbers in a latent vector.
        objective: What the players minimise: minimax, non-saturating, least-squares, hinge.
        discriminator_steps: Steps of the discriminator for one of the generator. `steps` counts
            those of the discriminator, each on a batch of its own.
        learning_rate: Of Adam, for both networks.
        betas: Of Adam, for both networks.
    """

    image_size: int | None = None
    channels: int | None = None
    width: int = 64
    latent_dim: int = 100
    objective: str = "non-saturating"
    discriminator_steps: int = 1
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "channels"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=1)
        if self.image_size not in (None, *IMAGE_SIZES):
            sizes = ", ".join(map(str, IMAGE_SIZES))
            raise ValueError(f"image_size must be one of {sizes}, got {self.image_size}")
        for name in ("width", "latent_dim", "discriminator_steps"):
            check_number(name, getattr(self, name), int, at_least=1)
        get_objective(self.objective)
        check_number("learning_rate", self.learning_rate, float, at_least=0)
        self.betas = (self.betas[0], self.betas[1])
        for beta in self.betas:
            check_number("betas", beta, float, at_least=0)
            if beta >= 1:
                raise ValueError(f"betas must be below 1, got {self.betas}")


PRESETS: dict[str, GANConfig] = {
    # Networks this small draw sharper digits with a higher learning rate than the paper's.
    "dcgan": GANConfig(data="digits", width=32, steps=6000, learning_rate=5e-4),
}


class DCGAN:
    """The system that the training loop drives: two networks, two optimizers, one step."""

    averaged: tuple[str, ...] = ("generator",)

    def __init__(self, config: GANConfig) -> None:
        self.config = config
        size, channels = _image_shape(config)
        self.networks: dict[str, nn.Module] = {
            "generator": _generator(config),
            "discriminator": Discriminator(size, channels=channels, width=config.width),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(
                network.parameters(), config.learning_rate, config.betas, fused=True
            )
            for name, network in self.networks.items()
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of the discriminator, and of the generator if it is its turn.

        Both judge the same generated images, as in PyTorch's DCGAN tutorial, which saves a pass
        through the generator; real and generated images are normalised apart.
        """
        real = batch[0]
        generators_turn = step % self.config.discriminator_steps == 0
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        # Keyed by the step and the place in the global batch, so that noise depends neither on
        # where a run was interrupted nor on the number of ranks.
        latent = random_normal(
            (len(real), self.config.latent_dim),
            self.config.seed,
            stream=step,
            sample_offset=fabric.global_rank * len(real),
            device=real.device,
        )
        with torch.set_grad_enabled(generators_turn):
            fake = generator(latent)

        objective = self.config.objective
        loss = discriminator_loss(objective, discriminator(real), discriminator(fake.detach()))
        self._descend(fabric, "discriminator", loss)
        losses = {"discriminator_loss": loss.detach()}
        if generators_turn:
            # Frozen, since the gradients of its weights would be computed only to be thrown away.
            discriminator.requires_grad_(False)
            judged = discriminator(real) if get_objective(objective).pairs else None
            loss = generator_loss(objective, discriminator(fake), judged)
            self._descend(fabric, "generator", loss)
            discriminator.requires_grad_(True)
            losses["generator_loss"] = loss.detach()
        return losses

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, channels, size, size) in [-1, 1]; image i is the same for any count."""
        return networks["generator"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Save `interpolation.png`: on each row the way from one sample to another."""
        generator = networks["generator"]
        ends = generator.latents(2 * _ROWS, self.config.seed)  # type: ignore[operator]
        walks = interpolate(ends[:_ROWS], ends[_ROWS:], _COLUMNS)
        with torch.no_grad():
            images = generator(walks.flatten(0, 1))
        save_png(image_grid(images, columns=_COLUMNS), folder / "interpolation.png")


def train(
    config: str | Path | GANConfig | Mapping[str, Any] = "dcgan",
    *,
    data: str | Tensor | Dataset[Any] | None = None,
    out: str | Path,
    resume: bool = False,
    **overrides: Any,
) -> Run:
    """Train a DCGAN and write a run folder.

    Args:
        config: The name of a preset, a configuration, a mapping of its fields, or a YAML or JSON file.
        data: A name that `pyfastgan.data.load` understands instead of the configuration's, images
            (N, C, size, size) in [-1, 1], or a data set of them.
        out: The folder of the run; it must not hold one yet, unless `resume`.
        resume: Go on from the checkpoint in `out`, with the same bits as without the interruption.
        overrides: Fields that replace those of the configuration.

    Returns:
        The run: `run.samples` is the last picture, `load(run)` the generator.

    Raises:
        ValueError: An unknown preset, key or objective (with the nearest one), images of another
            size than `image_size`, and what `pyfastgan.training.fit` refuses.
    """
    name, source = _NAME, config
    if isinstance(config, str) and not Path(config).is_file():
        check_choice("preset", config, PRESETS)
        name, source = config, PRESETS[config]
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data_sets.OWN
    resolved = resolve_config(GANConfig, source, **overrides)
    dataset = _dataset(data, resolved)
    channels, image_size = dataset.shape[0], dataset.shape[-1]
    resolved = resolve_config(GANConfig, resolved, image_size=image_size, channels=channels)
    return fit(lambda: DCGAN(resolved), dataset, resolved, out, name=name, resume=resume)


def load(run: Run | str | Path) -> Generator:
    """The generator of a run, on the CPU in evaluation mode: `load("runs/digits").sample(64, 1)`.

    Raises:
        ValueError: No run there, one of another kind, or weights that cannot be read.
    """
    run = Run.open(run.path if isinstance(run, Run) else run, GANConfig)
    assert isinstance(run.config, GANConfig)
    generator = _generator(run.config).eval()
    load_weights(run.weights, {"generator": generator})
    return generator


def _generator(config: GANConfig) -> Generator:
    size, channels = _image_shape(config)
    return Generator(size, channels=channels, width=config.width, latent_dim=config.latent_dim)


def _image_shape(config: GANConfig) -> tuple[int, int]:
    """The size and the channels, which the networks cannot be built without."""
    if config.image_size is None or config.channels is None:
        raise ValueError(
            "image_size and channels must be given where there are no data to take them from,"
            f" got {config.image_size} and {config.channels}"
        )
    return config.image_size, config.channels


def _dataset(data: Any, config: GANConfig) -> TensorData | ImageData | MapData:
    """The data as a data set, after checking that they are images as the networks make them."""
    if data is not None and not isinstance(data, str):
        dataset = data_sets.load(data)
    elif config.data == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    else:
        dataset = _named(config.data, config.image_size)
    size, channels = config.image_size, config.channels
    if len(dataset.shape) == 3:
        # What the configuration leaves open is as the data have it.
        size = dataset.shape[-1] if size is None else size
        channels = dataset.shape[0] if channels is None else channels
    if dataset.shape != (channels, size, size) or size not in IMAGE_SIZES:
        raise ValueError(
            f"data must be images of shape {_wanted(config)}, got items of shape {dataset.shape}; "
            "the configuration's channels and image_size say what is expected"
        )
    return dataset


def _named(name: str, size: int | None) -> TensorData | ImageData | MapData:
    """The data set of that name, its images square: `size` pixels a side, or a size that suits
    it."""
    if name in data_sets.TOYS:
        return data_sets.load(name)  # refused for its shape
    if size is None:
        dataset = data_sets.load(name)
        own = min(dataset.shape[1:])
        size = next((s for s in IMAGE_SIZES if s >= max(own, 16)), IMAGE_SIZES[-1])
        if dataset.shape[1:] == (size, size):
            return dataset
    return data_sets.load(name, size=size)


def _wanted(config: GANConfig) -> str:
    sizes = "8, 16, 32, 64 or 128" if config.image_size is None else str(config.image_size)
    return f"({config.channels or '1 or 3'}, {sizes}, {sizes})"
