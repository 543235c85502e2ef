"""Two processes train what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import game_system
import pytest
import torch
from game_system import train

from pyfastgan.training.checkpoint import load_checkpoint


def same_networks(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in ("net", "critic"):
        for key, value in one["networks"][name].items():
            torch.testing.assert_close(other["networks"][name][key], value)


def test_two_ranks_train_what_one_does_and_one_goes_on(tmp_path: Path) -> None:
    here = Path(game_system.__file__)
    paths = [str(here.parent), str(here.parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here), str(tmp_path / "two"), "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    one = train(tmp_path / "one", devices=1, steps=20)
    state = load_checkpoint(one.checkpoint)
    of_two = load_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    same_networks(state, of_two)
    assert (len(state["rng"]), len(of_two["rng"])) == (1, 2)
    same_networks({"networks": state["average"] | {"critic": {}}}, {"networks": of_two["average"]})

    two = train(tmp_path / "two", devices=1, steps=30, resume=True)
    same_networks(
        load_checkpoint(train(tmp_path / "one", 1, 30, resume=True).checkpoint),
        load_checkpoint(two.checkpoint),
    )
    # The losses are means over the ranks, and one rank alone writes.
    assert [row["step"] for row in two.history] == [5, 10, 15, 20, 25, 30]
    for row, other in zip(one.history, two.history, strict=True):
        assert row["critic"] == pytest.approx(other["critic"], abs=1e-5)
        assert row["net"] == pytest.approx(other["net"], abs=1e-5)
    assert abs(one.history[0]["critic"]) > 1e-3, "the players moved"
