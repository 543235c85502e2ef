"""Trains a few steps of presets of each family; a script that torchrun starts in several processes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# No batch norm, whose statistics are of a rank's own part of the batch.
RUNS = {
    "wgan-gp": ("gan", {"data": "8gaussians"}),
    "nsf": ("flow", {"data": "moons", "clip_norm": 0.2}),
    "flow-matching": ("diffusion", {"data": "moons"}),
    "vae": ("vae", {"data": "digits"}),
    "vq-vae": ("vae", {"data": "digits", "image_size": 8, "width": 8}),
    "pixelcnn": ("autoregressive", {"data": "digits"}),
}
COMMON = {"steps": 4, "batch_size": 16, "log_every": 1, "sample_every": 0, "accelerator": "cpu"}


def main(out: Path) -> None:
    """A run of each preset, in folders of their names."""
    for preset, (family, fields) in RUNS.items():
        module = importlib.import_module(f"pyfastgan.{family}")
        module.train(preset, out=out / preset, **COMMON, **fields)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
