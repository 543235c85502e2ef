"""The steps of a flow's training, its test and its pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyfastgan.data import TOYS
from pyfastgan.flow.config import FlowConfig
from pyfastgan.flow.datasets import DataSet, batches_of, some_items
from pyfastgan.flow.images import Glow, ImageNSF, ImageRealNVP
from pyfastgan.flow.model import Flow
from pyfastgan.flow.pictures import density_picture, interpolation, temperatures
from pyfastgan.flow.vectors import MAF, DenseNSF, DenseRealNVP
from pyfastgan.training import save_png
from pyfastgan.training.adam import Adam
from pyfastgan.training.ranks import average_gradients
from pyfastgan.training.report import report
from pyfastgan.training.rng import derive_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Items that ActNorm takes its statistics from.
_FIRST = 512
# Keeps the noise of training apart from other uses of the seed.
_NOISE_STREAM = 3
# What digits of 8 pixels have; other images have bytes.
_DIGIT_LEVELS, _BYTES = 17, 256


def build(config: FlowConfig) -> Flow:
    """The model of a configuration: of points in the plane without an image_size."""
    model = _build(config)
    model.temperature = config.temperature
    return model


def _build(config: FlowConfig) -> Flow:
    classes = config.classes if config.conditional else None
    if config.conditional and classes is None:
        raise ValueError("classes must be given for a conditional model without data")
    options: dict[str, Any] = {"width": config.width, "classes": classes}
    if config.image_size is None:
        options |= {"layers": config.layers, "blocks": config.blocks}
        if config.flow == "realnvp":
            return DenseRealNVP(2, **options)
        if config.flow == "maf":
            return MAF(2, actnorm=True, **options)
        if config.flow == "nsf":
            return DenseNSF(
                2,
                bins=config.bins,
                tail_bound=config.tail_bound,
                autoregressive=config.autoregressive,
                affine=config.affine,
                **options,
            )
        raise ValueError("data must be images for flow='glow', got points in the plane")
    if config.channels is None:
        raise ValueError(
            "image_size and channels must be given where there are no data to take them from,"
            f" got {config.image_size} and {config.channels}"
        )
    shape = (config.channels, config.image_size, config.image_size)
    options |= {"scales": config.scales, "levels": config.levels or _BYTES}
    options["dequantization"] = config.dequantization
    if config.flow == "realnvp":
        return ImageRealNVP(shape, **options)
    if config.flow == "glow":
        # Bounded both ways: after a short training the paper's scale draws samples that overflow.
        options |= {"scale": "softclamp", "recompute": config.recompute}
        return Glow(shape, steps=config.layers, **options)
    if config.flow == "nsf" and not config.autoregressive:
        splines = {"bins": config.bins, "tail_bound": config.tail_bound}
        return ImageNSF(shape, steps=config.layers, **splines, **options)  # type: ignore[arg-type]
    raise ValueError("data must be points in the plane for an autoregressive flow, got images")


def default_levels(config: FlowConfig) -> int:
    """Values of a pixel of the data."""
    digits = config.data.partition(":")[0] == "digits" and config.image_size == 8
    return _DIGIT_LEVELS if digits else _BYTES


class FlowSystem:
    """The system that the training loop drives: a model, its optimizer, one step.

    Args:
        config: With the shape of the images, if any.
        train: The data trained on; ActNorm takes its statistics from some of them.
        test: What was kept for testing, or None: then the final figures are of the training data, and say so.
        test_is: What that is.
    """

    averaged: tuple[str, ...] = ("model",)
    period = 1

    def __init__(
        self, config: FlowConfig, train: DataSet, test: DataSet | None = None, test_is: str = ""
    ) -> None:
        self.config, self.train, self.test, self.test_is = config, train, test, test_is
        model = build(config)
        first = some_items(train, _FIRST)
        # The same on every rank, and before the weights are first averaged.
        model.init(first[0], _labels(config, first), seed=config.seed)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": Adam(model.parameters(), config.learning_rate)
        }

    def prepare(self, step: int) -> None:
        """The learning rate of a step."""
        value = self.config.learning_rate * rate(self.config, step)
        for group in self.optimizers["model"].param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """One step down the mean negative log-likelihood."""
        config, x = self.config, batch[0]
        log_prob = self.networks["model"](
            x,
            _labels(config, batch),
            # Keyed by the step and the place in the global batch, so that noise depends neither on where a run was
            # interrupted nor on the number of ranks.
            seed=derive_seed(config.seed, _NOISE_STREAM, step),
            sample_offset=fabric.global_rank * len(x),
        )
        nll = -log_prob.mean()
        size = x[0].numel()
        images = config.image_size is not None
        optimizer = self.optimizers["model"]
        optimizer.zero_grad()
        fabric.backward(nll / size if images else nll)
        if config.clip_norm > 0:
            if fabric.world_size > 1:  # else each rank would clip its own
                average_gradients(optimizer)
            fabric.clip_gradients(
                self.networks["model"],
                optimizer,
                max_norm=config.clip_norm,
                error_if_nonfinite=False,
            )
        optimizer.step()
        nll = nll.detach()
        return {"bits_per_dim": nll / (size * math.log(2))} if images else {"nll": nll}

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) in [-1, 1], or points (count, 2), at the configuration's temperature."""
        return networks["model"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Test the model and write `test.json`; of images `temperatures.png` and `interpolation.png`, of points
        `density.png`."""
        model = networks["model"]
        assert isinstance(model, Flow)
        found = evaluate(model, self.test or self.train, self.config)
        report(folder, data=self.config.data, held_out=self.test_is or None, **found)
        if self.config.image_size is None:
            points = some_items(self.train, 2000)[0]
            save_png(density_picture(model, points), folder / "density.png")
            return
        save_png(temperatures(model, self.config.seed), folder / "temperatures.png")
        batch = some_items(self.test or self.train, 12)
        device = next(model.parameters()).device
        items = tuple(part.to(device) for part in batch)
        save_png(
            interpolation(model, items[0], _labels(self.config, items)),
            folder / "interpolation.png",
        )


def rate(config: FlowConfig, step: int) -> float:
    """The share of the learning rate that a step takes."""
    warm = min(1.0, step / max(1, config.warmup_steps))
    if config.decay_steps == 0:
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.decay_steps)))


@torch.no_grad()
def evaluate(model: Flow, dataset: DataSet, config: FlowConfig) -> dict[str, Any]:
    """Mean NLL of a data set in nats and in bits/dim; of images with the same noise for every model.

    `nll_error` is the standard error of the mean. Of a toy whose density is known, `excess` is the mean of log p(x) -
    log model(x), which estimates the divergence with far less noise than the NLL has, and `excess_error` its standard
    error.
    """
    device = next(model.parameters()).device
    parts, start, points = [], 0, []
    for batch in batches_of(dataset, device):
        x = batch[0]
        parts.append(-model(x, _labels(config, batch), seed=0, sample_offset=start).double())
        start += len(x)
        if config.image_size is None:
            points.append(x.double().cpu())
    nll = torch.cat(parts)
    found: dict[str, Any] = {
        "images" if config.image_size else "points": start,
        "nll": nll.mean().item(),
        "nll_error": (nll.std() / len(nll) ** 0.5).item(),
        "bits_per_dim": nll.mean().item() / (model.size * math.log(2)),
    }
    if config.data in TOYS:
        toy = TOYS[config.data]
        excess = nll.cpu() + toy.log_density(torch.cat(points))
        found |= {
            "entropy": toy.entropy,
            "excess": excess.mean().item(),
            "excess_error": (excess.std() / len(excess) ** 0.5).item(),
        }
    return found


def _labels(config: FlowConfig, batch: tuple[Tensor, ...]) -> Tensor | None:
    return batch[1] if config.conditional else None
