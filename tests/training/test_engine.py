"""`fit`: what a run writes, what it refuses, and that it does not wait for the device."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from toy_system import ToySystem, config, points

import pyfastgan
from pyfastgan.training import Run, TrainConfig, fit, load_weights, run_name
from pyfastgan.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One finished run: 23 steps, so that no interval divides it."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    return fit(
        ToySystem, points(), config(steps=23, sample_every=10, checkpoint_every=9), out, name="toy"
    )


def test_the_folder_holds_what_is_promised(run: Run) -> None:
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/")}
    assert len(events) == 1
    assert files - events == {
        "config.yaml",
        "metrics.csv",
        "samples/step-000010.png",
        "samples/step-000020.png",
        "samples/step-000023.png",
        "samples.png",
        "losses.png",
        "weights.safetensors",
        "checkpoints/last.ckpt",
        "extra.txt",
    }
    assert run.samples.read_bytes() == run.step_picture(23).read_bytes()
    with Image.open(run.losses) as picture:
        assert picture.size == (700, 400)


def test_the_configuration_is_saved_with_name_and_version(run: Run) -> None:
    assert run_name(run.path) == "toy"
    assert f"pyfastgan: {pyfastgan.__version__}" in run.config_file.read_text()
    again = Run.open(run.path, TrainConfig)
    assert again == run
    assert again.config.steps == 23


def test_metrics_have_a_row_each_interval_and_the_last_step(run: Run) -> None:
    rows = run.history
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 23]
    assert [row["images"] for row in rows] == [160, 320, 480, 640, 736]
    assert all(row["loss"] > 0 and row["steps_per_second"] > 0 for row in rows)
    for row in rows:
        assert row["images_per_second"] == pytest.approx(32 * row["steps_per_second"], rel=1e-2)
    assert rows[0]["loss"] > rows[-1]["loss"], "it learns"


def test_tensorboard_shows_losses_and_samples(run: Run) -> None:
    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    assert [step for step, _ in shown] == [5, 10, 15, 20, 23]
    assert [value for _, value in shown] == pytest.approx([row["loss"] for row in run.history])
    assert [event.step for event in board.Images("samples")] == [10, 20, 23]


def test_weights_are_the_average_that_samples_came_from(run: Run) -> None:
    state = load_checkpoint(run.checkpoint)
    net = ToySystem().networks["net"]
    load_weights(run.weights, {"net": net})
    for key, value in net.state_dict().items():
        assert torch.equal(value, state["average"]["net"][key]), key
        if value.is_floating_point():
            assert not torch.equal(value, state["networks"]["net"][key]), key


def test_extra_pictures_get_the_sampling_networks_in_eval_mode(run: Run) -> None:
    assert (run.path / "extra.txt").read_text() == "['net'] training=False"


def test_the_same_seed_gives_the_same_run_and_another_does_not(run: Run, tmp_path: Path) -> None:
    def final(seed: int, **fields: Any) -> Tensor:
        out = tmp_path / f"{seed}{len(fields)}"
        fitted = fit(ToySystem, points(), config(steps=23, seed=seed, **fields), out, name="toy")
        weight: Tensor = load_checkpoint(fitted.checkpoint)["networks"]["net"]["0.weight"]
        return weight

    expected = load_checkpoint(run.checkpoint)["networks"]["net"]["0.weight"]
    torch.manual_seed(99)  # what the caller did before does not matter
    # Neither do pictures and checkpoints, though sampling draws from the generators of training.
    assert torch.equal(final(0), expected)
    assert torch.equal(final(0, sample_every=9, checkpoint_every=2), expected)
    assert not torch.equal(final(1), expected)


def test_no_averaging_samples_the_current_weights(tmp_path: Path) -> None:
    run = fit(ToySystem, points(), config(steps=6, ema_decay=0.0), tmp_path / "r", name="toy")
    state = load_checkpoint(run.checkpoint)
    for key, value in state["networks"]["net"].items():
        assert torch.equal(value, state["average"]["net"][key]), key


class Watched(Tensor):
    """A loss that notes what is done with it; what is computed from it is watched too."""

    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        cls.calls.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_losses_are_read_on_the_host_at_log_steps_only(tmp_path: Path) -> None:
    Watched.calls.clear()
    marks: list[int] = []

    class Watching(ToySystem):
        def training_step(
            self, fabric: Any, batch: tuple[Tensor, ...], step: int
        ) -> dict[str, Tensor]:
            marks.append(len(Watched.calls))
            losses = super().training_step(fabric, batch, step)
            return {name: loss.as_subclass(Watched) for name, loss in losses.items()}

    fit(Watching, points(), config(steps=20, log_every=10), tmp_path / "r", name="toy")
    reading = {"item", "tolist", "__float__", "__bool__", "__int__", "numpy", "cpu", "to"}
    reading |= {"__array__", "__format__", "__repr__"}
    marks.append(len(Watched.calls))
    parts = [Watched.calls[begin:end] for begin, end in itertools.pairwise(marks)]
    read_after = [i + 1 for i, calls in enumerate(parts) if reading & set(calls)]
    assert read_after == [10, 20]


# What is refused, and what it leaves behind.


def test_a_new_run_does_not_overwrite_one(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    with pytest.raises(ValueError, match=r"already holds a run \(config\.yaml, .*--resume"):
        fit(ToySystem, points(), config(), run.path, name="toy")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("count", "batch", "message"),
    [(1, 1, "needs at least 2"), (31, 32, "31 items, fewer than batch_size=32")],
)
def test_too_little_data_leaves_no_folder(
    tmp_path: Path, count: int, batch: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(ToySystem, points(count), config(batch_size=batch), tmp_path / "r", name="toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", [{"accelerator": "cuda"}, {"accelerator": "abacus"}])
def test_a_missing_device_is_named_and_leaves_no_folder(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=f"cannot train on accelerator='{fields['accelerator']}'"):
        fit(ToySystem, points(), config(**fields), tmp_path / "r", name="toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["build", "step"])
def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, when: str) -> None:
    class Failing(ToySystem):
        def __init__(self) -> None:
            super().__init__()
            if when == "build":
                raise RuntimeError("no such layer")

        def training_step(
            self, fabric: Any, batch: tuple[Tensor, ...], step: int
        ) -> dict[str, Tensor]:
            if step == 3:
                raise RuntimeError("shapes differ")
            return super().training_step(fabric, batch, step)

    with pytest.raises(RuntimeError):
        fit(Failing, points(), config(), tmp_path / "r", name="toy")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    def build() -> ToySystem:
        raise AssertionError("too late")

    with pytest.raises(ValueError, match=r"cannot make the run folder .* is no writable folder"):
        fit(build, points(), config(), tmp_path / "file" / "run", name="toy")


def test_training_that_breaks_down_keeps_the_last_sound_checkpoint(tmp_path: Path) -> None:
    class Diverging(ToySystem):
        def training_step(
            self, fabric: Any, batch: tuple[Tensor, ...], step: int
        ) -> dict[str, Tensor]:
            losses = super().training_step(fabric, batch, step)
            return {"loss": losses["loss"] * (float("nan") if step >= 9 else 1.0)}

    out = tmp_path / "r"
    fields = config(log_every=50, checkpoint_every=4)
    with pytest.raises(ValueError, match="loss 'loss' is nan at step 12"):
        fit(Diverging, points(), fields, out, name="toy")
    assert load_checkpoint(out / "checkpoints" / "last.ckpt")["step"] == 8


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train(tmp_path: Path, precision: str) -> None:
    class Any2d(ToySystem):
        def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
            weight = networks["net"].get_parameter("0.weight")
            assert weight.dtype == torch.float32
            return networks["net"](torch.zeros(count, 2))  # type: ignore[no-any-return]

    run = fit(Any2d, points(), config(precision=precision), tmp_path / "r", name="toy")
    assert run.history[-1]["loss"] < run.history[0]["loss"]
