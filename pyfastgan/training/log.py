"""What a run writes while it goes: metrics.csv, TensorBoard events, and the meters they read."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyfastgan.training.files import write_text
from pyfastgan.training.run import Run, read_metrics

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter


class LossMeter:
    """Means of losses since the last reading, summed on the device: no step waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take in the scalar losses of one step; a loss may be absent from some steps."""
        for name, value in losses.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> tuple[list[str], Tensor]:
        """The names, and one float32 tensor of their means; still on the device."""
        names = list(self.sums)
        if not names:
            return [], torch.empty(0)
        return names, torch.stack([self.sums[name] / self.counts[name] for name in names])

    def clear(self) -> None:
        """Begin a new reading."""
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up the sums of `state_dict`."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


def check_finite(names: list[str], values: list[float], step: int) -> None:
    """Stop a run that has broken down, before its state replaces the last sound checkpoint.

    Raises:
        ValueError: A loss is NaN or infinite; the message names it.
    """
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"the loss {name!r} is {value} at step {step}: training has broken down"
                " (a checkpoint from before is kept)"
            )


class Stopwatch:
    """Steps a second since the last reading, without the time spent in `paused` blocks."""

    def __init__(self) -> None:
        self.start, self.steps = time.perf_counter(), 0

    def read(self) -> float:
        """Steps a second; starts anew."""
        now = time.perf_counter()
        rate = self.steps / max(now - self.start, 1e-9)
        self.start, self.steps = now, 0
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of a block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.start += time.perf_counter() - begin


class RunWriter:
    """Writes the logs of a run; makes the folder at the first write, so a failed start leaves none.

    Args:
        run: Where to write.
        step: The step the run goes on from; rows of later steps, left by a process that was killed,
            are dropped.
    """

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.start_step = run, step
        self.columns: list[str] = []
        self._board: SummaryWriter | None = None

    def open(self) -> SummaryWriter:
        """Make the folder with its config.yaml, or take a resumed one back to its checkpoint."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.run.path.mkdir(parents=True, exist_ok=True)
            self.run.save_config()
            rows = [row for row in read_metrics(self.run.metrics) if row["step"] <= self.start_step]
            if self.run.metrics.exists():
                self._rewrite(rows)
            self._board = SummaryWriter(
                str(self.run.path / "tensorboard"), purge_step=self.start_step + 1
            )
        return self._board

    def row(self, values: dict[str, int | float]) -> None:
        """Add a row to metrics.csv and its numbers to TensorBoard."""
        board = self.open()
        if not values.keys() <= set(self.columns):
            rows = read_metrics(self.run.metrics)
            self._rewrite([*rows, values])
        else:
            with open(self.run.metrics, "a", encoding="utf-8", newline="") as file:
                self._csv(file).writerow(values)
        for name, value in values.items():
            if name != "step":
                board.add_scalar(name, value, int(values["step"]))

    def picture(self, pixels: np.ndarray, step: int) -> None:
        """Show a picture of samples in TensorBoard."""
        self.open().add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        if self._board is not None:
            self._board.close()

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Write all rows anew, under the columns that they have between them."""
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO(newline="")
        writer = self._csv(text)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.run.metrics, text.getvalue())

    def _csv(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, lineterminator="\n")
