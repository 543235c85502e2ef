"""What a trained model was found to do on data that it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

from pyfastgan.training.files import write_text

FILE = "test.json"
HELD_OUT = "test split"
SEEN = "training data, there is no test split"


def report(folder: Path, *, data: str, held_out: bool, images: int, **figures: float) -> None:
    """Write a run's `test.json`, and print it on a line.

    Args:
        folder: Of the run.
        data: What it was trained on.
        held_out: Whether the figures are of images that were kept for testing; otherwise they are of
            those trained on, and the file says so.
        images: How many were tested.
        figures: By name.
    """
    which = HELD_OUT if held_out else SEEN
    record = {"data": data, "images_are": which, "images": images, **figures}
    write_text(folder / FILE, json.dumps(record, indent=2) + "\n")
    listed = ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
    print(f"{which}, {images} images: {listed}")
