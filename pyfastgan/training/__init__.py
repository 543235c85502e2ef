"""What every trainer shares: configuration, loop, averages, checkpoints, logs, pictures."""

from __future__ import annotations

from pyfastgan.training.checkpoint import CheckpointError, load_weights
from pyfastgan.training.config import TrainConfig, resolve_config
from pyfastgan.training.engine import fit
from pyfastgan.training.graphs import captured
from pyfastgan.training.grids import image_grid, save_png, save_samples
from pyfastgan.training.run import Run, run_name
from pyfastgan.training.signals import TrainingInterrupted
from pyfastgan.training.system import System

__all__ = [
    "CheckpointError",
    "Run",
    "System",
    "TrainConfig",
    "TrainingInterrupted",
    "captured",
    "fit",
    "image_grid",
    "load_weights",
    "resolve_config",
    "run_name",
    "save_png",
    "save_samples",
]
