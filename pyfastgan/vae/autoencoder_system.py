"""The steps of training autoencoders and dictionaries, their tests and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyfastgan.training import image_grid, save_png
from pyfastgan.training.adam import Adam
from pyfastgan.training.report import report
from pyfastgan.vae.autoencoder import Autoencoder
from pyfastgan.vae.config import AutoencoderConfig, SparseCodingConfig
from pyfastgan.vae.datasets import ImageSet, batches_of, some_images
from pyfastgan.vae.networks import decoder, default_network, default_width, encoder
from pyfastgan.vae.pictures import PAIRS, pairs
from pyfastgan.vae.sparse_coding import SparseCoding

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The model of a configuration."""
    kind = config.network or default_network(config.shape)
    width, d = config.width or default_width(kind), config.latent_dim
    return Autoencoder(
        encoder(kind, config.shape, d, width),
        decoder(kind, config.shape, d, width),
        latent_dim=d,
    )


def build_sparse_coding(config: SparseCodingConfig) -> SparseCoding:
    """The model of a configuration."""
    return SparseCoding(
        config.shape, config.atoms, penalty=config.penalty, iterations=config.iterations
    )


class AutoencoderSystem:
    """The system that the training loop drives; arguments as those of `VAESystem`."""

    averaged: tuple[str, ...] = ("model",)

    def __init__(
        self,
        config: AutoencoderConfig | SparseCodingConfig,
        train: ImageSet,
        test: ImageSet | None,
    ) -> None:
        self.config, self.train, self.test = config, train, test
        model: nn.Module
        if isinstance(config, SparseCodingConfig):
            model = build_sparse_coding(config)
        else:
            model = build_autoencoder(config)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": Adam(model.parameters(), config.learning_rate)
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step on the squared error of an image, or on the objective of sparse coding."""
        model = self.networks["model"]
        found = model(batch[0])
        loss = (found if isinstance(found, Tensor) else found[1]).mean()
        optimizer = self.optimizers["model"]
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        if isinstance(self.config, SparseCodingConfig):
            model.project()  # type: ignore[operator]
        return {"loss": loss.detach()}

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) of codes drawn as the models' `sample` says."""
        return networks["model"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Test the model and write `test.json`, `reconstructions.png`, and of sparse coding
        `dictionary.png`, the atoms that are used most."""
        model = networks["model"]
        assert isinstance(model, Autoencoder | SparseCoding)
        device = next(model.parameters()).device
        data = self.test or self.train
        figures = evaluate(model, data, device)
        report(
            folder,
            data=self.config.data,
            held_out="the test split" if self.test is not None else None,
            images=len(data),
            **figures,
        )
        images = some_images(data, PAIRS)[0].to(device)
        made = model.reconstruct(images).clamp(-1, 1)
        save_png(pairs(images, made), folder / "reconstructions.png")
        if isinstance(model, SparseCoding):
            save_png(dictionary(model), folder / "dictionary.png")


def evaluate(
    model: Autoencoder | SparseCoding, data: ImageSet, device: torch.device
) -> dict[str, Any]:
    """The mean squared error of a number of an image; of sparse coding also the mean objective, and how
    many atoms an image takes."""
    totals: dict[str, float] = {}
    count = 0

    def add(name: str, value: Tensor) -> None:
        totals[name] = totals.get(name, 0.0) + value.double().sum().item()

    with torch.no_grad():
        for batch in batches_of(data, device):
            x = batch[0]
            count += len(x)
            if isinstance(model, SparseCoding):
                codes = model.encode(x)
                made = model.decode(codes)
                add("objective", model.objective(x, codes))
                add("atoms_used", (codes != 0).sum(1))
            else:
                made = model.reconstruct(x)
            add("mse", (made - x).square().flatten(1).mean(1))
    return {name: total / count for name, total in sorted(totals.items())}


def dictionary(model: SparseCoding, most: int = 100) -> Any:
    """A picture of the atoms, those of the largest codes first, each scaled to the range of images."""
    order = model.magnitudes.argsort(descending=True)[:most]
    atoms = model.dictionary.detach()[order]
    scaled = atoms / atoms.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return image_grid(scaled.unflatten(1, model.shape), columns=10)
