"""Generative moment matching networks (Li et al. 2015; Dziugaite et al. 2015): a generator without an
opponent, trained by the maximum mean discrepancy between its samples and the data.

In data space the samples themselves are compared; in code space those of an autoencoder, which is
trained first: the generator then makes codes, and the decoder samples of them (Li et al., section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pyfastgan._names import check_choice
from pyfastgan.gan.dcgan import check_latent, draw_latents, draw_samples
from pyfastgan.gan.shaped import ShapedConfig, perceptron, shaped_data
from pyfastgan.ops import mmd, random_normal
from pyfastgan.training import Run, load_weights
from pyfastgan.training.adam import Adam
from pyfastgan.training.config import check_number

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SPACES = ("data", "code")
# Items whose median distance is the unit of the bandwidths.
_MEASURED = 500
_DROPOUT = 0.1
# The slope of a square root has no bound at zero.
_LEAST = 1e-8


@dataclass(kw_only=True)
class GMMNConfig(ShapedConfig):
    """How to train a GMMN.

    Args:
        space: What is compared: "data", or the "code" of an autoencoder; by default code for images
            and data for points.
        code_dim: Numbers in a code.
        autoencoder_steps: The first steps of a run in code space, which train the autoencoder.
        bandwidths: Of the Gaussian kernels, in units of the median distance between items.
    """

    batch_size: int = 512
    space: str | None = None
    code_dim: int = 16
    autoencoder_steps: int = 1000
    bandwidths: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space is not None:
            check_choice("space", self.space, SPACES)
        check_number("code_dim", self.code_dim, int, at_least=1)
        check_number("autoencoder_steps", self.autoencoder_steps, int, at_least=0)
        self.bandwidths = tuple(self.bandwidths)
        if not self.bandwidths:
            raise ValueError("bandwidths must hold at least one number, got none")
        for width in self.bandwidths:
            check_number("bandwidths", width, float, at_least=1e-6)


PRESETS = {
    # Averages of the weights would mix the decoder's with what it was before it was trained.
    "gmmn": GMMNConfig(
        data="digits",
        steps=5000,
        autoencoder_steps=1500,
        width=256,
        ema_decay=0.0,
    )
}
POINT_PRESETS = {
    "gmmn": GMMNConfig(
        data="ring8",
        steps=4000,
        width=128,
        latent_dim=2,
        bandwidths=(0.01, 0.03, 0.1, 0.3, 1.0),
        sample_count=1000,
    )
}


class GMMNGenerator(nn.Module):
    """Latent vectors (N, latent_dim) to samples (N, *shape) by way of codes (N, code_dim).

    Args:
        shape: Of a sample.
        latent_dim: Numbers in a latent vector.
        width: Units of the hidden layers.
        code_dim: Of the autoencoder, whose decoder this holds; None without one.
    """

    def __init__(
        self, shape: tuple[int, ...], *, latent_dim: int, width: int, code_dim: int | None
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        count = math.prod(shape)
        ends = [nn.Unflatten(1, shape), nn.Tanh()] if len(shape) > 1 else []
        own_ends = [] if code_dim else ends
        self.main = nn.Sequential(
            perceptron(latent_dim, *[width] * 3, code_dim or count), *own_ends
        )
        self.decoder: nn.Module = nn.Identity()
        if code_dim:
            self.decoder = nn.Sequential(perceptron(code_dim, width, width, count), *ends)

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.main(check_latent(latent, self.latent_dim)))

    def latents(self, count: int, seed: int | None = None) -> Tensor:
        """Normal latent vectors (count, latent_dim); vector i is the same for any count."""
        return draw_latents(self, self.latent_dim, count, seed)

    @torch.no_grad()
    def sample(
        self, count: int, seed: int | None = None, truncation: float | None = None
    ) -> Tensor:
        """Samples (count, *shape); sample i is the same for any count."""
        latents = draw_latents(self, self.latent_dim, count, seed, truncation)
        return draw_samples(self, latents)


class GMMN:
    """The system that the training loop drives.

    Args:
        config: How to train, with what the data decide.
        dataset: The data, for their median distance.
    """

    averaged: tuple[str, ...] = ("generator",)

    def __init__(self, config: GMMNConfig, dataset: Any) -> None:
        self.config = config
        count = min(_MEASURED, len(dataset))
        items = [dataset[i * len(dataset) // count][0] for i in range(count)]
        self._items = torch.stack(items)
        self._bandwidths: list[float] | None = None
        generator = _generator(config)
        self.networks: dict[str, nn.Module] = {"generator": generator}
        self.optimizers = {"generator": _adam(config, generator.main)}
        if config.space == "code":
            sizes = math.prod(config.shape), config.width, config.width, config.code_dim
            self.networks["encoder"] = nn.Sequential(
                nn.Flatten(), nn.Dropout(_DROPOUT), perceptron(*sizes)
            )
            self.optimizers["autoencoder"] = _adam(
                config, self.networks["encoder"], generator.decoder
            )

    @property
    def period(self) -> int:
        """An autoencoder is trained in steps of another kind, which end."""
        return 1 if self.config.space == "data" else 0

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step of the autoencoder on its squared error, or one of the generator on the discrepancy
        itself, the root of its square (Li et al., section 3)."""
        config, real = self.config, batch[0]
        generator: Any = getattr(self.networks["generator"], "module", self.networks["generator"])
        if config.space == "code" and step <= config.autoencoder_steps:
            code = self.networks["encoder"](real)
            made = generator.decoder(code.to(_dtype(generator)))
            error = (made - real).square().mean()
            self._descend(fabric, "autoencoder", error)
            return {"reconstruction_error": error.detach()}
        latent = random_normal(
            (len(real), config.latent_dim),
            config.seed,
            stream=step,
            sample_offset=fabric.global_rank * len(real),
            dtype=_dtype(generator),
            device=real.device,
        )
        made = generator.main(latent).flatten(1)
        squared = mmd(made, self._compared(real).to(made.dtype), self._widths(real), unbiased=False)
        loss = squared.clamp(min=_LEAST).sqrt()
        self._descend(fabric, "generator", loss)
        return {"mmd": loss.detach()}

    @torch.no_grad()
    def _compared(self, real: Tensor) -> Tensor:
        """What the generator's output is compared with."""
        if self.config.space == "data":
            return real.flatten(1)
        encoder = self.networks["encoder"].eval()  # it learns no more
        return encoder(real)

    def _widths(self, like: Tensor) -> list[float]:
        """The bandwidths in units of what is compared: the same at any step, since the autoencoder
        does not change any more."""
        if self._bandwidths is None:
            items = self._compared(self._items.to(like))
            distance = torch.pdist(items.float()).median().item()
            self._bandwidths = [width * max(distance, 1e-6) for width in self.config.bandwidths]
        return self._bandwidths

    def _descend(self, fabric: Fabric, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        fabric.backward(loss)
        self.optimizers[name].step()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images in [-1, 1] or points; sample i is the same for any count."""
        return networks["generator"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """None beside the samples."""


def prepare_gmmn(
    config: GMMNConfig, own: Any
) -> tuple[GMMNConfig, Dataset[Any], Callable[[], GMMN]]:
    """The configuration with what the data decide, the data, and what builds the system."""
    config, dataset = shaped_data(config, own)
    if config.space is None:
        config = replace(config, space="data" if config.shape == (2,) else "code")
    return config, dataset, lambda: GMMN(config, dataset)


def load_gmmn(run: Run) -> GMMNGenerator:
    """The generator of a run, on the CPU in evaluation mode."""
    assert isinstance(run.config, GMMNConfig)
    generator = _generator(run.config).eval()
    load_weights(run.weights, {"generator": generator})
    return generator


def _generator(config: GMMNConfig) -> GMMNGenerator:
    return GMMNGenerator(
        config.shape,
        latent_dim=config.latent_dim,
        width=config.width,
        code_dim=config.code_dim if config.space == "code" else None,
    )


def _adam(config: GMMNConfig, *networks: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for network in networks for p in network.parameters()]
    return Adam(parameters, config.learning_rate, config.betas)


def _dtype(network: nn.Module) -> torch.dtype:
    """What a network takes whose parts are called past Fabric's wrapper, which converts."""
    return next(network.parameters()).dtype
