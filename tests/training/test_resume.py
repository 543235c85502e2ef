"""A run that was stopped and resumed is the run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_system import ToySystem, config, points

from pyfastgan.training import CheckpointError, Run, TrainingInterrupted, fit
from pyfastgan.training.checkpoint import load_checkpoint

RATES = ("steps_per_second", "images_per_second")


def same(a: Any, b: Any, where: str = "") -> None:
    """Assert that two checkpoints agree to the bit, naming the first place where they do not."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def same_runs(one: Run, other: Run) -> None:
    """The same final state, pictures, weights, and metrics but for their speeds."""
    first, second = load_checkpoint(one.checkpoint), load_checkpoint(other.checkpoint)
    first.pop("config"), second.pop("config")
    same(first, second)
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert one.samples.read_bytes() == other.samples.read_bytes()
    histories = [
        [{k: v for k, v in row.items() if k not in RATES} for row in run.history]
        for run in (one, other)
    ]
    assert histories[0] == histories[1]


def test_100_and_100_steps_are_200(tmp_path: Path) -> None:
    whole = fit(ToySystem, points(), config(steps=200), tmp_path / "whole", name="toy")
    half = fit(ToySystem, points(), config(steps=100), tmp_path / "half", name="toy")
    torch.manual_seed(7)
    # Intervals may change with the steps.
    again = config(steps=200, sample_every=90)
    half = fit(ToySystem, points(), again, tmp_path / "half", name="toy", resume=True)
    same_runs(whole, half)
    assert len(half.history) == 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The short run without an interruption."""
    return fit(ToySystem, points(), config(), tmp_path_factory.mktemp("w") / "r", name="toy")


def stopping(at: int, number: signal.Signals) -> type[ToySystem]:
    """A system that sends its own process a signal in the middle of a step."""

    class Stopping(ToySystem):
        def training_step(
            self, fabric: Any, batch: tuple[Tensor, ...], step: int
        ) -> dict[str, Tensor]:
            if step == at:
                os.kill(os.getpid(), number)
            return super().training_step(fabric, batch, step)

    return Stopping


@pytest.mark.parametrize(
    ("at", "number"),
    [(1, signal.SIGINT), (7, signal.SIGTERM), (10, signal.SIGINT)],
    ids=["first", "between rows", "at a row"],
)
def test_a_signal_ends_the_step_and_saves(
    tmp_path: Path, whole: Run, at: int, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    out = tmp_path / "r"
    with pytest.raises(TrainingInterrupted, match=f"after step {at} of 20.*--resume"):
        fit(stopping(at, number), points(), config(), out, name="toy")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_checkpoint(out / "checkpoints" / "last.ckpt")["step"] == at
    assert (out / "weights.safetensors").is_file(), "an interrupted run can be sampled"
    resumed = fit(ToySystem, points(), config(), out, name="toy", resume=True)
    same_runs(whole, resumed)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a worker process of the tests may have switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_does_not_wait_for_the_step(tmp_path: Path) -> None:
    class Impatient(ToySystem):
        def training_step(
            self, fabric: Any, batch: tuple[Tensor, ...], step: int
        ) -> dict[str, Tensor]:
            # To this thread: two for the process may reach another one, and count as one.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(Impatient, points(), config(), tmp_path / "r", name="toy")
    assert not isinstance(caught.value, TrainingInterrupted)
    assert list(tmp_path.iterdir()) == []


KILLED_WHILE_SAVING = """
import os, signal, sys
import torch
from toy_system import ToySystem, config, points
from pyfastgan.training import fit

save, calls = torch.save, []

def save_half(state, path):
    calls.append(path)
    save(state, path)
    if len(calls) == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
fit(ToySystem, points(), config(checkpoint_every=6, log_every=2), sys.argv[1], name="toy")
"""


def test_a_process_killed_while_saving_goes_on_from_the_save_before(tmp_path: Path) -> None:
    fields, out = config(checkpoint_every=6, log_every=2), tmp_path / "r"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    # The bits depend on the number of threads, here one as in the tests' own process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(out)]
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert load_checkpoint(out / "checkpoints" / "last.ckpt")["step"] == 6
    resumed = fit(ToySystem, points(), fields, out, name="toy", resume=True)
    assert [row["step"] for row in resumed.history] == list(range(2, 21, 2))
    whole = fit(ToySystem, points(), fields, tmp_path / "whole", name="toy")
    same_runs(whole, resumed)


# What cannot be resumed.


@pytest.fixture
def done(tmp_path: Path) -> Run:
    return fit(ToySystem, points(), config(steps=6), tmp_path / "r", name="toy")


def test_a_run_of_another_model_is_refused(done: Run) -> None:
    with pytest.raises(CheckpointError, match="it is a run of 'toy', not of 'dcgan'"):
        fit(ToySystem, points(), config(steps=9), done.path, name="dcgan", resume=True)


def test_another_configuration_is_refused_by_its_keys(done: Run) -> None:
    other = config(steps=9, batch_size=16, seed=4)
    message = "another configuration: batch_size was 32, now 16; seed was 0, now 4$"
    with pytest.raises(CheckpointError, match=message):
        fit(ToySystem, points(), other, done.path, name="toy", resume=True)


def test_other_networks_are_refused_by_name(done: Run) -> None:
    with pytest.raises(CheckpointError, match=r"last\.ckpt, network 'net', .*size mismatch"):
        fit(lambda: ToySystem(9), points(), config(steps=9), done.path, name="toy", resume=True)

    class Renamed(ToySystem):
        def __init__(self) -> None:
            super().__init__()
            self.networks["gain"] = self.networks.pop("scale")

    with pytest.raises(CheckpointError, match=r"networks \['net', 'scale'\], expected \['gain'"):
        fit(Renamed, points(), config(steps=9), done.path, name="toy", resume=True)


def test_a_damaged_checkpoint_is_refused_and_nothing_is_changed(done: Run) -> None:
    done.checkpoint.write_bytes(done.checkpoint.read_bytes()[:1000])
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    with pytest.raises(CheckpointError, match=r"last\.ckpt, it is damaged or only half written"):
        fit(ToySystem, points(), config(steps=9), done.path, name="toy", resume=True)
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*")} == before


def test_nothing_to_resume_and_steps_already_done(done: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume: there is no run folder"):
        fit(ToySystem, points(), config(), tmp_path / "none", name="toy", resume=True)
    with pytest.raises(ValueError, match="up to step 5: it is at step 6"):
        fit(ToySystem, points(), config(steps=5), done.path, name="toy", resume=True)
    finished = fit(ToySystem, points(), config(steps=6), done.path, name="toy", resume=True)
    assert [row["step"] for row in finished.history] == [5, 6]


def test_dropout_matters_here() -> None:
    """The comparison above means something only if the system draws from the generators."""
    net = ToySystem().networks["net"]
    assert any(isinstance(module, nn.Dropout) for module in net.modules())
    x = torch.randn(8, 2)
    assert not torch.equal(net(x), net(x))
