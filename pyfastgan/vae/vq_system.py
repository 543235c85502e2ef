"""The steps of the training of VQ-VAE and VQ-VAE-2, their test, their pictures, and the codes that they
leave for a prior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.nn import VectorQuantizer
from pyfastgan.training.adam import Adam
from pyfastgan.training.files import atomic
from pyfastgan.training.grids import save_png
from pyfastgan.training.report import report
from pyfastgan.vae.config import VQConfig
from pyfastgan.vae.datasets import ImageSet, batches_of, some_images
from pyfastgan.vae.pictures import PAIRS, pairs
from pyfastgan.vae.vq import VQVAE
from pyfastgan.vae.vq2 import LEVELS, VQVAE2

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CODES_FILE = "codes.safetensors"
# Of an image that is grey all over, whose squared error is not divided by nothing.
_LEAST_VARIANCE = 1e-4


def build_vq(config: VQConfig) -> VQVAE | VQVAE2:
    """The model of a configuration."""

    def quantizer(seed: int) -> VectorQuantizer:
        return VectorQuantizer(
            config.codes,
            config.code_width,
            codebook=config.codebook,
            gradient=config.gradient,
            commitment=config.commitment,
            decay=config.decay,
            restart_below=config.restart_below,
            seed=seed,
        )

    sizes = {
        "width": config.width,
        "halvings": config.halvings or (2 if config.shape[-1] >= 16 else 1),
        "residual_blocks": config.residual_blocks,
    }
    if config.levels == 1:
        return VQVAE(config.shape, quantizer(config.seed), **sizes)
    return VQVAE2(config.shape, quantizer(config.seed), quantizer(config.seed + 1), **sizes)


class VQSystem:
    """The system that the training loop drives; arguments as those of `VAESystem`."""

    averaged: tuple[str, ...] = ("model",)

    def __init__(self, config: VQConfig, train: ImageSet, test: ImageSet | None) -> None:
        self.config, self.train, self.test = config, train, test
        model = build_vq(config)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": Adam(model.parameters(), config.learning_rate)
        }

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """A step on the squared error, in units of the images' variance, and the codebook's loss."""
        images = batch[0]
        found = self.networks["model"](images)
        error = functional.mse_loss(found.images, images)
        loss = error / _variance(fabric, images).clamp(min=_LEAST_VARIANCE) + found.loss
        optimizer = self.optimizers["model"]
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        losses = {"loss": loss, "mse": error, **_of_levels("perplexity", found.perplexity)}
        return {name: value.detach() for name, value in losses.items()}

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Images (count, C, H, W) of codes drawn each for itself."""
        return networks["model"].sample(count, seed)  # type: ignore[operator]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Write `reconstructions.png`, `codes.safetensors` and `test.json`."""
        model = networks["model"]
        assert isinstance(model, VQVAE | VQVAE2)
        weight = next(model.parameters())
        images = some_images(self.test or self.train, PAIRS)[0].to(weight.device)
        made = model.decode(model.encode(images))  # type: ignore[arg-type]
        save_png(pairs(images, made), folder / "reconstructions.png")
        found = {"train": coded(model, self.train)}
        if self.test:
            found["test"] = coded(model, self.test)
        save_codes(folder / CODES_FILE, found, self.config.codes)
        dataset, (maps, _) = (
            (self.test, found["test"]) if self.test else (self.train, found["train"])
        )
        figures: dict[str, Any] = {
            "mse": squared_error(model, dataset, maps),
            "codes": self.config.codes,
        }
        names = LEVELS if len(maps) == 2 else ("",)
        for name, level in zip(names, maps):
            figures |= _use(level, self.config.codes, name and f"_{name}")
        report(
            folder,
            data=self.config.data,
            held_out="the test split" if self.test is not None else None,
            images=len(maps[0]),
            **figures,
        )


def _of_levels(name: str, values: Tensor) -> dict[str, Tensor]:
    """A number, or one for each of two levels, by name."""
    if values.ndim == 0:
        return {name: values}
    return {f"{name}_{level}": value for level, value in zip(LEVELS, values)}


# The maps of a model's levels, the coarsest first, and the labels.
Coded = tuple[tuple[Tensor, ...], Tensor | None]


def coded(model: VQVAE | VQVAE2, dataset: ImageSet) -> Coded:
    """The codes of all images, int64 (N, h, w) for each level, and the labels, all on the CPU."""
    device = next(model.parameters()).device
    codes: list[tuple[Tensor, ...]] = []
    labels: list[Tensor] = []
    for batch in batches_of(dataset, device):
        found = model.encode(batch[0])
        codes.append(found if isinstance(found, tuple) else (found,))
        labels.extend(part.cpu() for part in batch[1:2])
    maps = tuple(torch.cat(level).cpu() for level in zip(*codes))
    return maps, torch.cat(labels) if labels else None


def save_codes(path: Path, found: dict[str, Coded], count: int) -> None:
    """Write the codes of `train`, and of `test`, for who trains a prior over them.

    The file holds int64 (N, h, w) under these names, of two levels the coarser maps under `train_top`
    and `test_top`, int64 (N,) under `labels_train` and `labels_test` where there are labels, and the
    number of codes of a level as the metadata `codes`.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, (maps, labels) in found.items():
        tensors[name] = maps[-1].contiguous()
        if len(maps) == 2:
            tensors[f"{name}_top"] = maps[0].contiguous()
        if labels is not None:
            tensors[f"labels_{name}"] = labels.contiguous()
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"codes": str(count)})


def squared_error(model: VQVAE | VQVAE2, dataset: ImageSet, maps: tuple[Tensor, ...]) -> float:
    """The mean squared error of a number of an image made of its codes."""
    device, total, start = next(model.parameters()).device, 0.0, 0
    for batch in batches_of(dataset, device):
        own = tuple(level[start : start + len(batch[0])].to(device) for level in maps)
        made = model.decode(own if len(own) == 2 else own[0])  # type: ignore[arg-type]
        total += (made - batch[0]).square().mean().item() * len(made)
        start += len(made)
    return total / start


def _use(codes: Tensor, count: int, level: str) -> dict[str, Any]:
    counts = torch.bincount(codes.flatten(), minlength=count).double()
    share = counts / counts.sum()
    perplexity = torch.exp(-torch.xlogy(share, share).sum())
    return {f"used{level}": int((counts > 0).sum()), f"perplexity{level}": perplexity.item()}


def _variance(fabric: Fabric, images: Tensor) -> Tensor:
    """That of the global batch: with its own, each rank would weigh its error differently."""
    if fabric.world_size == 1:
        return images.var()
    mean = cast("Tensor", fabric.all_reduce(images.mean(), reduce_op="mean"))
    squares = (images - mean).square().sum()
    total = cast("Tensor", fabric.all_reduce(squares, reduce_op="sum"))
    return total / (images.numel() * fabric.world_size - 1)
