"""The steps of a variational autoencoder's training, its test and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyfastgan.data import shape_factors
from pyfastgan.metrics import disentanglement
from pyfastgan.training import save_png
from pyfastgan.training.adam import Adam
from pyfastgan.training.devices import direct
from pyfastgan.training.report import report
from pyfastgan.vae.config import VAEConfig
from pyfastgan.vae.datasets import ImageSet, batches_of, some_images
from pyfastgan.vae.latents import save_latents
from pyfastgan.vae.model import VAE, importance_bound
from pyfastgan.vae.networks import decoder, default_network, default_width, encoder
from pyfastgan.vae.pictures import PAIRS, manifold, pairs, traversals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Streams of the noise: steps count from 1 and take two each; the test has those before.
_TEST_STREAM = 1


def build(config: VAEConfig) -> VAE:
    """The model of a configuration."""
    shape, classes = config.shape, config.classes if config.conditional else None
    if config.conditional and classes is None:
        raise ValueError("classes must be given for a conditional model without data")
    kind = config.network or default_network(shape)
    width = config.width or default_width(kind)
    d = config.latent_dim
    return VAE(
        encoder(kind, shape, 2 * d, width, classes or 0),
        decoder(kind, shape, d, width, classes or 0),
        latent_dim=d,
        likelihood=config.likelihood,
        classes=classes,
    )


class VAESystem:
    """The system that the training loop drives: a model, its optimizer, one step.

    Args:
        config: With the shape of the images.
        train: The data trained on.
        test: Images kept for testing, or None: then the final figures are of the training data, and
            say so.
    """

    averaged: tuple[str, ...] = ("model",)

    def __init__(self, config: VAEConfig, train: ImageSet, test: ImageSet | None) -> None:
        self.config, self.train, self.test = config, train, test
        self.model = model = build(config)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": Adam(model.parameters(), config.learning_rate)
        }

    @property
    def period(self) -> int:
        """A growing capacity is another number in every step."""
        return 1 if self.config.capacity is None else 0

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step on a bound, or on what beta or a capacity makes of it."""
        config, images, labels = self.config, batch[0], _labels(self.config, batch)
        model = direct(fabric, self.networks["model"])
        # Keyed by the step and the place in the global batch, so that noise depends neither on
        # where a run was interrupted nor on the number of ranks.
        place = {"seed": config.seed, "sample_offset": fabric.global_rank * len(images)}
        # Not by Fabric's wrapper, which takes longer over the call than the observation takes.
        x = self.model.observe(images, stream=2 * step, **place)
        place["stream"] = 2 * step + 1
        if config.importance_samples > 1:
            terms = model(x, labels, samples=config.importance_samples, **place)
            loss = -importance_bound(*terms).mean()
            losses = {"loss": loss}
        else:
            nll, kl = (part.mean() for part in model(x, labels, **place))
            loss = nll + self._divergence_loss(kl, step)
            losses = {"loss": loss, "nll": nll, "kl": kl}
        optimizer = self.optimizers["model"]
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def _divergence_loss(self, kl: Tensor, step: int) -> Tensor:
        config = self.config
        if config.capacity is None:
            return config.beta * kl
        target = config.capacity * min(step / config.capacity_steps, 1.0)
        return config.beta * (kl - target).abs()

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) in [-1, 1]; image i is the same for any count, up to rounding."""
        return networks["model"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Test the model and write `test.json`, `reconstructions.png`, `traversals.png` and, of a
        model with two latent numbers, `manifold.png`; of an unconditional model `codes.safetensors`."""
        model = networks["model"]
        assert isinstance(model, VAE)
        if model.classes is None:
            save_latents(folder / "codes.safetensors", model, self.train, self.test)
        figures = evaluate(model, self.test or self.train, self.config)
        if not self.config.conditional:
            figures |= _disentanglement(model, self.config.data, self.test)
        report(
            folder,
            data=self.config.data,
            held_out="the test split" if self.test is not None else None,
            **figures,
        )
        weight = next(model.parameters())
        batch = some_images(self.test or self.train, PAIRS)
        batch = tuple(part.to(weight.device) for part in batch)
        images, labels = batch[0], _labels(self.config, batch)
        x = model.observe(images, 0, stream=_TEST_STREAM)
        save_png(pairs(images, model.reconstruct(x, labels)), folder / "reconstructions.png")
        save_png(traversals(model, x, labels), folder / "traversals.png")
        if model.latent_dim == 2:
            label = None if labels is None else int(labels[0])
            save_png(manifold(model, label), folder / "manifold.png")


def evaluate(model: VAE, dataset: ImageSet, config: VAEConfig) -> dict[str, Any]:
    """Mean ELBO and NLL of a data set in nats, and the NLL in bits/dim.

    Every model is tested on the same observations of the images (see `VAE.observe`), whatever its
    seed. `nll_error` is the standard error of the mean over the images.
    """
    device = next(model.parameters()).device
    elbos, nlls, start = [], [], 0
    with torch.no_grad():
        for batch in batches_of(dataset, device):
            labels = _labels(config, batch)
            x = model.observe(batch[0], 0, stream=_TEST_STREAM, sample_offset=start)
            nll, kl = model(x, labels, seed=0, sample_offset=start)
            elbos.append(-nll - kl)
            nlls.append(model.nll(x, config.test_samples, labels, sample_offset=start))
            start += len(x)
    elbo, nll = torch.cat(elbos).double(), torch.cat(nlls).double()
    size = batch[0][0].numel()
    return {
        "images": start,
        "samples": config.test_samples,
        "elbo": elbo.mean().item(),
        "nll": nll.mean().item(),
        "nll_error": (nll.std() / len(nll) ** 0.5).item(),
        "bits_per_dim": model.bits_per_dim(nll.mean(), size).item(),
        "elbo_bits_per_dim": model.bits_per_dim(-elbo.mean(), size).item(),
    }


def _disentanglement(model: VAE, data: str, test: ImageSet | None) -> dict[str, float]:
    """Of data whose factors are known: whether single latent numbers stand for them."""
    if data.partition(":")[0] != "shapes" or test is None:
        return {}
    device = next(model.parameters()).device
    with torch.no_grad():
        codes: list[Tensor] = []
        for batch in batches_of(test, device):
            start = sum(map(len, codes))
            x = model.observe(batch[0], 0, stream=_TEST_STREAM, sample_offset=start)
            codes.append(model.encode(x)[0].cpu())
    return disentanglement(torch.cat(codes), shape_factors("test"))


def _labels(config: VAEConfig, batch: tuple[Tensor, ...]) -> Tensor | None:
    return batch[1] if config.conditional else None
