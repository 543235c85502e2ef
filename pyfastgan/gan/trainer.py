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
# What the configuration of a run says about data that were handed over as an object.
_OWN_DATA = "given in Python"
_ROWS, _COLUMNS = 8, 10


@dataclass(kw_only=True)
class GANConfig(TrainConfig):
    """How to train a DCGAN; the defaults are those of Radford et al. 2015 where the paper has one.

    Args:
        image_size: Pixels a side: 8, 16, 32, 64 or 128.
        channels: Of the images, 1 for grey ones.
        width: Channels of the maps of half the image size; every halving of the map doubles them.
        latent_dim: Numbers in a latent vector.
        objective: What the players minimise: minimax, non-saturating, least-squares, hinge.
        discriminator_steps: Steps of the discriminator for one of the generator. `steps` counts
            those of the discriminator, each on a batch of its own.
        learning_rate: Of Adam, for both networks.
        betas: Of Adam, for both networks.
    """

    image_size: int = 64
    channels: int = 3
    width: int = 64
    latent_dim: int = 100
    objective: str = "non-saturating"
    discriminator_steps: int = 1
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("image_size", self.image_size, int, at_least=1)
        if self.image_size not in IMAGE_SIZES:
            sizes = ", ".join(map(str, IMAGE_SIZES))
            raise ValueError(f"image_size must be one of {sizes}, got {self.image_size}")
        for name in ("channels", "width", "latent_dim", "discriminator_steps"):
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
    "dcgan": GANConfig(
        data="digits", image_size=16, channels=1, width=32, steps=6000, learning_rate=5e-4
    ),
}


class DCGAN:
    """The system that the training loop drives: two networks, two optimizers, one step."""

    averaged: tuple[str, ...] = ("generator",)

    def __init__(self, config: GANConfig) -> None:
        self.config = config
        size, channels, width = config.image_size, config.channels, config.width
        self.networks: dict[str, nn.Module] = {
            "generator": _generator(config),
            "discriminator": Discriminator(size, channels=channels, width=width),
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
        overrides["data"] = data if isinstance(data, str) else _OWN_DATA
    resolved = resolve_config(GANConfig, source, **overrides)
    dataset = _dataset(data, resolved)
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
    return Generator(
        config.image_size,
        channels=config.channels,
        width=config.width,
        latent_dim=config.latent_dim,
    )


def _dataset(data: Any, config: GANConfig) -> Dataset[Any]:
    """The data as a data set, after checking that they are the images that the networks expect."""
    if data is not None and not isinstance(data, str):
        dataset = data_sets.load(data)
    elif config.data == _OWN_DATA:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    else:
        # Toys have no size to choose, and are refused for their shape below.
        options = {} if config.data in data_sets.TOYS else {"size": config.image_size}
        dataset = data_sets.load(config.data, **options)
    expected = (config.channels, config.image_size, config.image_size)
    if dataset.shape != expected:
        raise ValueError(
            f"data must be images of shape {expected}, got items of shape {dataset.shape}; "
            "the configuration's channels and image_size say what is expected"
        )
    return dataset
