"""Meters and metrics.csv."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_system import config

from pyfastgan.training.log import LossMeter, RunWriter, check_finite
from pyfastgan.training.run import Run, read_metrics


def test_means_are_over_the_steps_that_had_the_loss() -> None:
    meter = LossMeter()
    for step in range(1, 5):
        losses = {"a": torch.tensor(float(step))}
        meter.add({**losses, "b": torch.tensor(7.0)} if step == 2 else losses)
    names, means = meter.means()
    assert dict(zip(names, means.tolist(), strict=True)) == {"a": 2.5, "b": 7.0}
    meter.clear()
    assert meter.means()[0] == []


def test_a_broken_loss_is_named() -> None:
    check_finite(["a"], [1.0], 3)
    with pytest.raises(ValueError, match="loss 'b' is nan at step 3"):
        check_finite(["a", "b"], [1.0, float("nan")], 3)


def test_rows_of_a_killed_process_are_dropped_and_new_columns_are_added(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "toy", config())
    writer = RunWriter(run, 0)
    for step in (5, 10, 15):
        writer.row({"step": step, "a": 1 / 3 + step})
    writer.close()
    with open(run.metrics, "a") as file:
        file.write("20,0.3")  # the process died while writing

    writer = RunWriter(run, 10)
    writer.row({"step": 15, "a": 2.0, "b": 3.0})
    writer.row({"step": 20, "a": 4.0})
    writer.close()
    assert read_metrics(run.metrics) == [
        {"step": 5, "a": 1 / 3 + 5, "b": None},
        {"step": 10, "a": 1 / 3 + 10, "b": None},
        {"step": 15, "a": 2.0, "b": 3.0},
        {"step": 20, "a": 4.0, "b": None},
    ]
