"""Training StyleGAN2 (Karras et al. 2020, arXiv 1912.04958): the non-saturating loss, R1 and path-length
regularisation, both taken on one step in so many with as many times their weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.objectives import discriminator_loss, generator_loss
from pyfastgan.gan.penalties import gradient_penalty
from pyfastgan.gan.shaped import ShapedConfig, shaped_data
from pyfastgan.gan.stylegan2_networks import StyleDiscriminator, StyleGenerator
from pyfastgan.ops import random_normal
from pyfastgan.training import Run, image_grid, load_weights, save_png
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import check_number
from pyfastgan.training.rng import derive_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_OBJECTIVE = "non-saturating"
# Of the moving averages of styles and of path lengths, a step.
_STYLE_RATE, _LENGTH_RATE = 0.005, 0.01
_ROWS, _COLUMNS = 8, 10
# Uses of noise under one seed, each with a stream a step.
_MAPS, _PATHS = 1, 2


@dataclass(kw_only=True)
class StyleGAN2Config(ShapedConfig):
    """How to train StyleGAN2, on images of 8 to 128 pixels.

    Args:
        mapping_layers: Of the network from latent vectors to styles.
        r1_weight: Of the R1 penalty, weight / 2 E |g|^2 on real images.
        r1_interval: It is taken on one step in so many.
        path_weight: Of the squared deviation of path lengths from their moving average.
        path_interval: It is taken on one step in so many.
        group_size: Images that the discriminator compares.
    """

    batch_size: int = 32
    width: int = 64
    latent_dim: int = 64
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.0, 0.99)
    mapping_layers: int = 4
    r1_weight: float = 1.0
    r1_interval: int = 16
    path_weight: float = 2.0
    path_interval: int = 4
    group_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mapping_layers", "r1_interval", "path_interval", "group_size"):
            check_number(name, getattr(self, name), int, at_least=1)
        for name in ("r1_weight", "path_weight"):
            check_number(name, getattr(self, name), float, at_least=0)


PRESETS = {"stylegan2": StyleGAN2Config(data="digits", steps=4000, width=32, latent_dim=32)}


class StyleGAN2:
    """The system that the training loop drives."""

    averaged: tuple[str, ...] = ("generator",)

    def __init__(self, config: StyleGAN2Config) -> None:
        self.config = config
        channels, size, _ = config.shape
        self.networks: dict[str, nn.Module] = {
            "generator": _generator(config),
            "discriminator": StyleDiscriminator(
                size, channels=channels, width=config.width, group_size=config.group_size
            ),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: Adam(network.parameters(), config.learning_rate, config.betas)
            for name, network in self.networks.items()
        }

    @property
    def period(self) -> int:
        """Of the lazy terms."""
        config = self.config
        lazy = (config.r1_weight, config.r1_interval), (config.path_weight, config.path_interval)
        return math.lcm(*(interval for weight, interval in lazy if weight > 0))

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of each player on the same generated images; the lazy terms join the ordinary ones, so
        that Adam takes one step."""
        config, real = self.config, batch[0]
        generator = _bare(self.networks["generator"])
        discriminator = self.networks["discriminator"]
        offset = fabric.global_rank * len(real)
        latent = random_normal(
            (len(real), config.latent_dim),
            config.seed,
            stream=step,
            sample_offset=offset,
            dtype=generator.start.dtype,  # its parts are called past Fabric's wrapper, which converts
            device=real.device,
        )
        noise = generator.noise(
            len(real), derive_seed(config.seed, _MAPS), stream=step, sample_offset=offset
        )
        fake = self.networks["generator"](latent, noise)
        losses: dict[str, Tensor] = {}

        judged = discriminator(real), discriminator(fake.detach())
        loss = losses["discriminator_loss"] = discriminator_loss(_OBJECTIVE, *judged)
        if config.r1_weight > 0 and step % config.r1_interval == 0:
            losses["r1"] = gradient_penalty(
                discriminator,
                real,
                penalty="r1",
                weight=config.r1_weight,
                interval=config.r1_interval,
            )
            loss = loss + losses["r1"]
        self._descend(fabric, "discriminator", loss)

        # Frozen, since the gradients of its weights would be computed only to be thrown away.
        discriminator.requires_grad_(False)
        loss = losses["generator_loss"] = generator_loss(_OBJECTIVE, discriminator(fake))
        discriminator.requires_grad_(True)
        if config.path_weight > 0 and step % config.path_interval == 0:
            half = max(1, len(real) // 2)
            probe = random_normal(
                (half, math.prod(config.shape)),
                derive_seed(config.seed, _PATHS),
                stream=step,
                sample_offset=offset,
                dtype=fake.dtype,
                device=fake.device,
            ).reshape(half, *config.shape)
            lengths = path_lengths(generator, latent[:half], [maps[:half] for maps in noise], probe)
            mean = _over_ranks(fabric, lengths.detach().mean())
            generator.mean_length.lerp_(mean.to(generator.mean_length), _LENGTH_RATE)
            deviation = (lengths - generator.mean_length.clone()).square().mean()
            losses["path_length"] = mean
            loss = loss + config.path_weight * config.path_interval * deviation
        self._descend(fabric, "generator", loss)
        with torch.no_grad():
            mean = _over_ranks(fabric, generator.styles(latent).mean(0))
            generator.mean_style.lerp_(mean.to(generator.mean_style), _STYLE_RATE)
        return {name: value.detach() for name, value in losses.items()}

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, channels, size, size); image i is the same for any count."""
        return networks["generator"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Save `interpolation.png`, on each row the way from one image to another, without noise."""
        generator: Any = networks["generator"]
        ends = generator.latents(2 * _ROWS, self.config.seed)
        walks = interpolate(ends[:_ROWS], ends[_ROWS:], _COLUMNS)
        save_png(
            image_grid(generator(walks.flatten(0, 1)), columns=_COLUMNS),
            folder / "interpolation.png",
        )


def path_lengths(
    generator: StyleGenerator, latent: Tensor, noise: list[Tensor] | None, probe: Tensor
) -> Tensor:
    """|J' y| (N,) of the images' Jacobian J by the styles, for y the `probe` over the root of the number of
    pixels (Karras et al. 2020, section 3.2): the root of the mean square over the layers' styles."""
    with torch.enable_grad():
        styles = generator.styles(latent)[:, None].expand(-1, generator.layers, -1)
        image = generator.draw(styles, noise)
        size = image.shape[-1] * image.shape[-2]
        (slope,) = torch.autograd.grad(
            (image * probe).sum() / math.sqrt(size), styles, create_graph=True
        )
        return slope.square().sum(2).mean(1).sqrt()


def prepare_stylegan2(
    config: StyleGAN2Config, own: Any
) -> tuple[StyleGAN2Config, Dataset[Any], Callable[[], StyleGAN2]]:
    """The configuration with what the data decide, the data, and what builds the system."""
    config, dataset = shaped_data(config, own, points=False)
    return config, dataset, lambda: StyleGAN2(config)


def load_stylegan2(run: Run) -> StyleGenerator:
    """The generator of a run, on the CPU in evaluation mode."""
    assert isinstance(run.config, StyleGAN2Config)
    generator = _generator(run.config).eval()
    load_weights(run.weights, {"generator": generator})
    return generator


def _generator(config: StyleGAN2Config) -> StyleGenerator:
    channels, size, _ = config.shape
    return StyleGenerator(
        size,
        channels=channels,
        width=config.width,
        latent_dim=config.latent_dim,
        mapping_layers=config.mapping_layers,
    )


def _over_ranks(fabric: Fabric, value: Tensor) -> Tensor:
    return cast("Tensor", fabric.all_reduce(value, reduce_op="mean"))


def _bare(network: Any) -> StyleGenerator:
    """The module inside Fabric's wrapper."""
    return getattr(network, "module", network)
