"""A run in several processes, one of which is killed at a step; a script that torchrun starts."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from game_system import GameSystem
from toy_system import config, points

from pyfastgan.training import Run, fit

STEP = 7


class KilledSystem(GameSystem):
    """The process of rank PYFASTGAN_KILLED_RANK ends as if by kill -9."""

    def training_step(self, fabric: Any, batch: Any, step: int) -> Any:
        if step == STEP and os.environ.get("PYFASTGAN_KILLED_RANK") == str(fabric.global_rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(fabric, batch, step)


def train(out: Path, resume: bool = False) -> Run:
    """Ten steps, and a checkpoint after each; every process of a run comes here."""
    fields = config(steps=10, checkpoint_every=1)
    return fit(KilledSystem, points(), fields, out, name="game", resume=resume)


if __name__ == "__main__":
    train(Path(sys.argv[1]), resume="--resume" in sys.argv)
