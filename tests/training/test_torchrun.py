"""Every family under torchrun: two processes log the losses of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import family_ranks
import pytest

from pyfastgan.training.run import read_metrics


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    here = Path(family_ranks.__file__)
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command += [str(here), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    family_ranks.main(tmp_path / "one")
    for family in family_ranks.RUNS:
        one, two = (read_metrics(tmp_path / n / family / "metrics.csv") for n in ("one", "two"))
        assert len(one) == len(two) == 4
        for row, other in zip(one, two, strict=True):
            for key, value in row.items():
                if not key.endswith("_per_second"):
                    assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-4), (family, key)
