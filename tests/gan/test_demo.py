"""The demo says what it measured, and fails when the samples are bad."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(demo: ModuleType, out: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["demo.py", "--out", str(out), "--steps", str(steps)])
    rates = {"fast": 2000.0, "reference": 1000.0}
    monkeypatch.setattr(demo, "images_per_second", lambda *_: rates)
    return demo.main()


def test_one_step_is_not_enough(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(demo, tmp_path / "run", 1, monkeypatch) == 1
    text = capsys.readouterr().out
    assert "2.00 times as fast" in text
    assert "FAILED: the FID of the trained generator is above a third" in text
    assert "FAILED: no sample looks like a " in text
    assert "FID between two halves of the real digits" in text
    assert text.rstrip().endswith(str(tmp_path / "run" / "samples.png"))
    assert (tmp_path / "run" / "samples.png").is_file()


def test_good_samples_pass(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Real digits in the place of samples."""
    images = demo.pf.data.load("digits", size=16).tensors[0]

    class Perfect:
        def sample(self, count: int, seed: int) -> torch.Tensor:
            return images[:count]

    monkeypatch.setattr(demo.pf.gan, "load", lambda _: Perfect())
    assert run(demo, tmp_path / "run", 1, monkeypatch) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_rates_are_measured_on_both_paths(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference path is really chosen for its rounds, and for them alone."""
    chosen = []
    used = demo.pf.use_backend
    monkeypatch.setattr(demo.pf, "use_backend", lambda name: chosen.append(name) or used(name))
    config = demo.GANConfig(image_size=8, channels=1, width=2, accelerator="cpu")
    rates = demo.images_per_second(config, demo.pf.data.load("digits"), rounds=2, steps=1)
    assert chosen == ["auto", "reference"] * 3
    assert rates.keys() == {"fast", "reference"}
    assert all(rate > 0 for rate in rates.values())


def test_a_second_run_gets_a_folder_of_its_own(demo: ModuleType, tmp_path: Path) -> None:
    assert demo.new_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert demo.new_folder(tmp_path / "demo") == tmp_path / "demo-3"
