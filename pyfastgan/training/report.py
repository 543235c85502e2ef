"""What a trained model was found to do on data that it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

from pyfastgan.training.files import write_text

FILE = "test.json"
SEEN = "training data, there is no test split"


def report(folder: Path, *, data: str, held_out: str | None, **figures: float) -> None:
    """Write a run's `test.json`, and print it on a line.

    Args:
        folder: Of the run.
        data: What it was trained on.
        held_out: What was kept for testing; None if the figures are of data that were trained on, and then
            the file says so.
        figures: By name, the number of `images` or `points` among them.
    """
    which = held_out or SEEN
    record = {"data": data, "held_out": which, **figures}
    write_text(folder / FILE, json.dumps(record, indent=2) + "\n")
    listed = ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
    print(f"{which}: {listed}")
