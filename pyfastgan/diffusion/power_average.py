"""Averages of weights whose length is chosen after training (Karras et al. 2024, "Analyzing and improving the training
dynamics of diffusion models", section 3).

A power-function average after step t weighs the weights of step s by (s^(g+1) - (s-1)^(g+1)) / t^(g+1): it grows with
the run, so that its width sigma_rel, the profile's standard deviation over t, stays the same. From
stored averages of two widths any other profile is made by least squares over these weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyfastgan.training.checkpoint import save_weights

# The widths that are stored, by the names of their networks.
WIDTHS = {"width050": 0.05, "width100": 0.10}
FOLDER = "averages"


def exponent(width: float) -> float:
    """g of a width in (0, 0.28]: (g + 1)^(1/2) / ((g + 2) (g + 3)^(1/2)) = width (equation 126).

    Raises `ValueError` for a width out of range.
    """
    if not 0 < width <= 0.28:
        raise ValueError(f"the width of an average must lie in (0, 0.28], got {width}")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots.real.max())


def decay(width: float, step: int) -> float:
    """What stays of an average at a step counted from 1: (1 - 1 / step)^(g + 1)."""
    return (1 - 1 / step) ** (exponent(width) + 1)


def profile(width: float, step: int, steps: int) -> np.ndarray:
    """The weights that an average at `step` gives to steps 1 to `steps`, of sum 1; float64."""
    power = exponent(width) + 1
    s = np.arange(steps + 1, dtype=np.float64).clip(max=step) / step
    return np.diff(s**power)


def combination(stored: Sequence[tuple[float, int]], width: float, step: int) -> np.ndarray:
    """The factors of stored averages (width, step) whose sum comes nearest to an average of `width` at `step`."""
    columns = np.stack([profile(*pair, step) for pair in stored], 1)
    factors, *_ = np.linalg.lstsq(columns, profile(width, step, step), rcond=None)
    return factors


class PowerAverages:
    """The averages of both widths, kept beside a network while it is trained.

    They are networks of the system, so that checkpoints hold them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.networks = {
            name: copy.deepcopy(network).requires_grad_(False).eval() for name in WIDTHS
        }

    @torch.no_grad()
    def update(self, network: nn.Module, averages: Mapping[str, nn.Module], step: int) -> None:
        """Follow one optimisation step, the `step`-th counted from 1."""
        live = [value.detach() for value in network.parameters()]
        for name, width in WIDTHS.items():
            mine = [value.detach() for value in averages[name].parameters()]
            torch._foreach_lerp_(mine, live, 1 - decay(width, step))


def save_snapshot(folder: Path, averages: Mapping[str, nn.Module], step: int) -> None:
    """Write both averages to a file of the run."""
    path = folder / FOLDER / f"step-{step:08d}.safetensors"
    save_weights(path, averages, {"step": str(step)})


def reconstruct(run: str | Path, width: float, step: int | None = None) -> dict[str, Tensor]:
    """The weights of a run as an average of another width would have them.

    Args:
        run: The folder.
        width: sigma_rel, in (0, 0.28].
        step: At which step; by default the last that is stored.

    Returns:
        Tensors by their names in the network.

    Raises:
        ValueError: No stored averages, a width out of range, a step before the first one stored.
    """
    from safetensors import safe_open

    files = sorted((Path(run) / FOLDER).glob("step-*.safetensors"))
    steps = [int(file.stem.removeprefix("step-")) for file in files]
    if not steps:
        raise ValueError(f"{run} holds no stored averages: train with ema_snapshots above 0")
    step = steps[-1] if step is None else step
    if step < steps[0]:
        raise ValueError(f"step must be at least {steps[0]}, the first that is stored, got {step}")
    exponent(width)
    used = [(file, at) for file, at in zip(files, steps) if at <= step]
    pairs = [(value, at) for _, at in used for value in WIDTHS.values()]
    factors = iter(combination(pairs, width, step))
    total: dict[str, Any] = {}
    kinds: dict[str, torch.dtype] = {}
    for file, _ in used:
        with safe_open(file, "pt") as tensors:
            for name in WIDTHS:
                factor = float(next(factors))
                for key in tensors.keys():  # noqa: SIM118
                    if not key.startswith(f"{name}."):
                        continue
                    value = tensors.get_tensor(key)
                    short = key.removeprefix(f"{name}.")
                    total[short] = total.get(short, 0.0) + factor * value.double()
                    kinds[short] = value.dtype
    return {key: value.to(kinds[key]) for key, value in total.items()}
