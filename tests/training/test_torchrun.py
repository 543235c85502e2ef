"""Under torchrun: two processes log the losses of one, in every family and under FSDP; a killed one leaves a run that
goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import family_ranks
import killed_rank
import pytest

from pyfastgan.training.checkpoint import load_checkpoint
from pyfastgan.training.run import read_metrics

HERE = Path(family_ranks.__file__).parent
ROOT = HERE.parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def python(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(HERE), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    done = python(*TORCHRUN, family_ranks.__file__, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    family_ranks.main(tmp_path / "one")
    for preset in family_ranks.RUNS:
        one, two = (read_metrics(tmp_path / n / preset / "metrics.csv") for n in ("one", "two"))
        assert len(one) == len(two) == 4
        for row, other in zip(one, two, strict=True):
            for key, value in row.items():
                if not key.endswith("_per_second"):
                    assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-4), (preset, key)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_rank_leaves_a_run_that_goes_on(rank: str, tmp_path: Path) -> None:
    out = tmp_path / "r"
    done = python(*TORCHRUN, killed_rank.__file__, out, PYFASTGAN_KILLED_RANK=rank)
    assert done.returncode != 0
    # The other rank waits for the dead one's gradients, so the checkpoint is that of the step before.
    state = load_checkpoint(out / "checkpoints" / "last.ckpt")
    assert state["step"] == killed_rank.STEP - 1
    assert len(state["rng"]) == 2
    done = python(*TORCHRUN, killed_rank.__file__, out, "--resume")
    assert done.returncode == 0, done.stderr
    rows = [row["step"] for row in read_metrics(out / "metrics.csv")]
    assert rows == [5, 10]
    whole = killed_rank.train(tmp_path / "whole")
    for row, other in zip(whole.history, read_metrics(out / "metrics.csv"), strict=True):
        assert row["critic"] == pytest.approx(other["critic"], abs=1e-5)
        assert row["net"] == pytest.approx(other["net"], abs=1e-5)


def test_two_sharded_processes_train_what_one_does(tmp_path: Path) -> None:
    """FSDP, as the example has it."""
    example = ROOT / "examples" / "sharded_diffusion.py"
    runs = [python(*start, example, 3, tmp_path / "p.png") for start in ([], TORCHRUN)]
    losses = []
    for done in runs:
        assert done.returncode == 0, done.stderr
        losses.append([float(x) for x in re.findall(r"loss (\S+)", done.stdout)])
    one, two = losses
    assert len(one) == 3
    assert one[2] != one[0]
    assert two == pytest.approx(one, rel=1e-4)
