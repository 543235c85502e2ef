"""Trains a few steps of each family; a script that torchrun starts in several processes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# No batch norm, whose statistics are of a rank's own part of the batch.
RUNS = {
    "gan": ("wgan-gp", {"data": "8gaussians"}),
    "flow": ("nsf", {"data": "moons", "clip_norm": 0.2}),
    "diffusion": ("flow-matching", {"data": "moons"}),
    "vae": ("vae", {"data": "digits"}),
    "autoregressive": ("pixelcnn", {"data": "digits"}),
}
COMMON = {"steps": 4, "batch_size": 16, "log_every": 1, "sample_every": 0, "accelerator": "cpu"}


def main(out: Path) -> None:
    """One run a family, in folders of their names."""
    for family, (preset, fields) in RUNS.items():
        module = importlib.import_module(f"pyfastgan.{family}")
        module.train(preset, out=out / family, **COMMON, **fields)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
