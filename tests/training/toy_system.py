"""A small system that leans on everything a resumed run must put back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.data import TensorData
from pyfastgan.training import TrainConfig


def points(count: int = 96) -> TensorData:
    """Points around a circle."""
    generator = torch.Generator().manual_seed(5)
    angle = torch.rand(count, generator=generator) * 6.2832
    return TensorData(torch.stack([angle.cos(), angle.sin()], 1))


def config(**fields: Any) -> TrainConfig:
    """A short run: 3 batches an epoch, and intervals that do not divide each other."""
    defaults = {"steps": 20, "batch_size": 32, "log_every": 5, "accelerator": "cpu"}
    return TrainConfig(**{**defaults, "sample_every": 0, "checkpoint_every": 0, **fields})


class ToySystem:
    """A denoiser with dropout, batch norm and noise from every generator there is."""

    def __init__(self, width: int = 8) -> None:
        net = nn.Sequential(
            nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 2)
        )
        self.networks: dict[str, nn.Module] = {"net": net, "scale": nn.Linear(1, 1)}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "net": torch.optim.Adam(net.parameters(), lr=1e-2),
            "scale": torch.optim.SGD(self.networks["scale"].parameters(), lr=1e-2, momentum=0.9),
        }
        self.averaged: tuple[str, ...] = ("net",)

    def training_step(self, fabric: Any, batch: tuple[Tensor, ...], step: int) -> dict[str, Tensor]:
        """One step; a third loss is there in some steps only."""
        (x,) = batch
        strength = 0.1 + 0.01 * random.random()
        strength += 0.01 * float(np.random.random())  # noqa: NPY002
        noisy = x + strength * torch.randn_like(x)
        loss = functional.mse_loss(self.networks["net"](noisy), x)
        gain = self.networks["scale"](torch.ones(1, 1, device=x.device)).square().mean()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        fabric.backward(loss + gain)
        for optimizer in self.optimizers.values():
            optimizer.step()
        losses = {"loss": loss.detach(), "gain": gain.detach()}
        if step % 4 == 0:
            losses["now_and_then"] = loss.detach() * 2
        return losses

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Points; draws from the generators of training too, which the loop must hide from them."""
        torch.randn(3), random.random(), np.random.random()  # noqa: NPY002
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        out: Tensor = networks["net"](noise)
        return out

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Leave a trace of having been called."""
        training = any(network.training for network in networks.values())
        (folder / "extra.txt").write_text(f"{sorted(networks)} training={training}")
