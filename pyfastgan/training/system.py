"""What a family hands to the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class System(Protocol):
    """Networks, their optimizers and one step of their training.

    The loop seeds all generators, builds the system on the CPU, and then replaces the entries of
    `networks` and `optimizers` by Fabric's wrappers: a step must reach them through these
    dictionaries.

    Attributes:
        networks: By name.
        optimizers: By name; their parameters are those of the networks.
        averaged: The names of the networks that make samples. Their moving average (with
            `ema_decay` 0 their current weights) is what is sampled from and what
            weights.safetensors holds.

    A system that is trained on images of two kinds has `two_kinds = True`.

    A system whose training has phases has a `phase` besides, the name of the one that it is in, which
    checkpoints hold.

    A system that can be trained with `cuda_graph=True` also has `period`: the steps after which the
    work of `training_step` repeats, in all but its data and noise; 0 if it does not. Its steps
    then wait for the device nowhere, and see only the numbers `period` to `2 period - 1`.

    A system whose learning rate changes has `prepare(step)`, which sets it before each step: in place
    where it is a tensor, which a captured step reads.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    averaged: tuple[str, ...]

    def training_step(
        self, fabric: Fabric, batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """Do one optimisation step: forward, `fabric.backward`, `optimizer.step`.

        Args:
            fabric: For `backward`; `fabric.device` is where the batch is.
            batch: The items of this rank's part of the batch, stacked.
            step: Counts from 1.

        Returns:
            Detached scalar losses on the device. Reading one on the host (`.item()`) would stall
            the device.
        """
        ...

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        """Draw samples without gradients: images (count, C, H, W) in [-1, 1] or points (count, 2).

        Args:
            networks: Those named in `averaged`, in eval mode, without wrappers.
            count: How many.
            seed: The same seed gives the same samples.
        """
        ...

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Save further pictures at the end of the run (may do nothing)."""
        ...
