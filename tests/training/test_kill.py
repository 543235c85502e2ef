"""A run that is killed at any moment, or meets a full disk, leaves a checkpoint that can be loaded.

PYFASTGAN_KILLS sets how often it is killed; `make proofs` kills it 50 times.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import toy_system
from toy_system import ToySystem, config, points

from pyfastgan.training import fit
from pyfastgan.training.checkpoint import load_checkpoint

KILLS = int(os.environ.get("PYFASTGAN_KILLS", "3"))

# One import for all the processes: each is a fork that saves at every step and is killed some moment later.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from toy_system import ToySystem, config, points
from pyfastgan.training import fit
from pyfastgan.training.checkpoint import load_checkpoint

out, step = Path(sys.argv[1]), 0
checkpoint = out / "checkpoints" / "last.ckpt"
for kill in range(int(sys.argv[2])):
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    child = os.fork()
    if child == 0:
        fields = config(steps=10**6, checkpoint_every=1, log_every=1000)
        fit(ToySystem, points(), fields, out, name="toy", resume=step > 0)
        os._exit(1)
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "it ended by itself"
        time.sleep(0.01)
    time.sleep(0.2 * random.Random(kill).random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    now = load_checkpoint(checkpoint)["step"]
    assert now > step, (now, step)
    step = now
"""

FULL = """
import resource, sys
from toy_system import ToySystem, config, points
from pyfastgan.training import fit

size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
fit(ToySystem, points(), config(steps=40), sys.argv[1], name="toy", resume=True)
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    here = Path(toy_system.__file__)
    paths = [str(here.parent), str(here.parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    out = tmp_path / "r"
    done = python(KILLED, out, KILLS)
    assert done.returncode == 0, done.stderr
    step = load_checkpoint(out / "checkpoints" / "last.ckpt")["step"]
    run = fit(ToySystem, points(), config(steps=step + 2), out, name="toy", resume=True)
    assert load_checkpoint(run.checkpoint)["step"] == step + 2


def test_a_full_disk_is_reported_and_the_checkpoint_stays(tmp_path: Path) -> None:
    run = fit(ToySystem, points(), config(), tmp_path / "r", name="toy")
    before = run.checkpoint.read_bytes()
    done = python(FULL, run.path, len(before) // 2)
    assert done.returncode == 1
    assert (
        f"OSError: cannot write {run.checkpoint}, what it held before is untouched" in done.stderr
    )
    assert "MiB are free" in done.stderr
    assert run.checkpoint.read_bytes() == before
