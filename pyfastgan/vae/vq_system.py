"""The steps of a VQ-VAE's training, its test, its pictures, and the codes that it leaves for a prior."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.nn import VectorQuantizer
from pyfastgan.training.files import atomic, write_text
from pyfastgan.training.grids import save_png
from pyfastgan.vae.config import VQConfig
from pyfastgan.vae.datasets import ImageSet, batches_of, some_images
from pyfastgan.vae.pictures import PAIRS, pairs
from pyfastgan.vae.vq import VQVAE

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CODES_FILE = "codes.safetensors"
# Of an image that is grey all over, whose squared error is not divided by nothing.
_LEAST_VARIANCE = 1e-4


def build_vq(config: VQConfig) -> VQVAE:
    """The model of a configuration."""
    quantizer = VectorQuantizer(
        config.codes,
        config.code_width,
        codebook=config.codebook,
        gradient=config.gradient,
        commitment=config.commitment,
        decay=config.decay,
        restart_below=config.restart_below,
        seed=config.seed,
    )
    return VQVAE(
        config.shape,
        quantizer,
        width=config.width,
        halvings=config.halvings or (2 if config.shape[-1] >= 16 else 1),
        residual_blocks=config.residual_blocks,
    )


class VQSystem:
    """The system that the training loop drives; arguments as those of `VAESystem`."""

    averaged: tuple[str, ...] = ("model",)

    def __init__(self, config: VQConfig, train: ImageSet, test: ImageSet | None) -> None:
        self.config, self.train, self.test = config, train, test
        model = build_vq(config)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step on the squared error, in units of the images' variance, and the codebook's loss."""
        images = batch[0]
        found = self.networks["model"](images)
        error = functional.mse_loss(found.images, images)
        loss = error / images.var().clamp(min=_LEAST_VARIANCE) + found.loss
        optimizer = self.optimizers["model"]
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        losses = {"loss": loss, "mse": error, "perplexity": found.perplexity}
        return {name: value.detach() for name, value in losses.items()}

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) of codes drawn each for itself."""
        return networks["model"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Write `reconstructions.png`, `codes.safetensors` and `test.json`."""
        model = networks["model"]
        assert isinstance(model, VQVAE)
        weight = next(model.parameters())
        images = some_images(self.test or self.train, PAIRS)[0].to(weight.device)
        made = model.decode(model.encode(images))
        save_png(pairs(images, made), folder / "reconstructions.png")
        found = {"train": coded(model, self.train)}
        if self.test:
            found["test"] = coded(model, self.test)
        save_codes(folder / CODES_FILE, found, self.config.codes)
        dataset, codes = (
            (self.test, found["test"][0]) if self.test else (self.train, found["train"][0])
        )
        figures = {
            "data": self.config.data,
            "images_are": "test split" if self.test else "training data, there is no test split",
            "images": len(codes),
            "mse": squared_error(model, dataset, codes),
            "codes": self.config.codes,
            **_use(codes, self.config.codes),
        }
        write_text(folder / "test.json", json.dumps(figures, indent=2) + "\n")
        print(
            f"{figures['images_are']}, {figures['images']} images: squared error"
            f" {figures['mse']:.4f} a pixel, {figures['used']} of {figures['codes']} codes used,"
            f" perplexity {figures['perplexity']:.1f}"
        )


def coded(model: VQVAE, dataset: ImageSet) -> tuple[Tensor, Tensor | None]:
    """The codes of all images, int64 (N, h, w), and the labels, both on the CPU."""
    device = next(model.parameters()).device
    codes: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches_of(dataset, device):
        codes.append(model.encode(batch[0]).cpu())
        labels.extend(part.cpu() for part in batch[1:2])
    return torch.cat(codes), torch.cat(labels) if labels else None


def save_codes(path: Path, found: dict[str, tuple[Tensor, Tensor | None]], count: int) -> None:
    """Write the codes of `train`, and of `test`, for who trains a prior over them.

    The file holds int64 (N, h, w) under these names, int64 (N,) under `labels_train` and `labels_test`
    where there are labels, and the number of codes as the metadata `codes`.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, (codes, labels) in found.items():
        tensors[name] = codes.contiguous()
        if labels is not None:
            tensors[f"labels_{name}"] = labels.contiguous()
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"codes": str(count)})


def squared_error(model: VQVAE, dataset: ImageSet, codes: Tensor) -> float:
    """The mean squared error of a number of an image made of its codes."""
    device, total, start = next(model.parameters()).device, 0.0, 0
    for batch in batches_of(dataset, device):
        made = model.decode(codes[start : start + len(batch[0])].to(device))
        total += (made - batch[0]).square().mean().item() * len(made)
        start += len(made)
    return total / start


def _use(codes: Tensor, count: int) -> dict[str, Any]:
    counts = torch.bincount(codes.flatten(), minlength=count).double()
    share = counts / counts.sum()
    perplexity = torch.exp(-torch.xlogy(share, share).sum())
    return {"used": int((counts > 0).sum()), "perplexity": perplexity.item()}
