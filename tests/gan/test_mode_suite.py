"""The mode suite: what its systems are, runs in pieces, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.gan import OBJECTIVES, PENALTIES, mode_suite, system_config
from pyfastgan.gan.mode_suite import SYSTEMS

TINY = {"steps": 3, "width": 8, "batch_size": 16, "accelerator": "cpu", "sample_count": 16}


def test_systems() -> None:
    r3gan = system_config("r3gan", "grid25")
    assert r3gan == system_config("relativistic+r1r2", "grid25")
    assert (r3gan.objective, r3gan.penalty, r3gan.data) == ("relativistic", "r1r2", "grid25")
    assert (r3gan.architecture, r3gan.width, r3gan.hidden_layers) == ("mlp", 128, 2)
    assert r3gan.batch_size == 512
    assert pf.gan.preset("r3gan", "ring8") == system_config("r3gan", "ring8")
    assert system_config("wgan").clip == 0.01
    assert system_config("wgan+wgan-gp").clip == 0
    mixed = system_config("kl+r1+pac4+orthogonal", "stacked-digits")
    assert (mixed.objective, mixed.penalty, mixed.pack) == ("kl", "r1", 4)
    assert mixed.orthogonal_weight > 0
    assert (mixed.architecture, mixed.discriminator_norm) == ("dcgan", False)
    assert system_config("minimax", "stacked-digits").discriminator_norm
    assert {*OBJECTIVES} <= {*SYSTEMS}


def test_every_objective_goes_with_every_regulariser() -> None:
    for objective in OBJECTIVES:
        for part in (*PENALTIES, "spectral-norm", "orthogonal", "pac2"):
            assert system_config(f"{objective}+{part}").objective == objective


@pytest.mark.parametrize(
    ("system", "data", "says"),
    [
        ("klx", "ring8", "did you mean 'kl'"),
        ("kl+r9", "ring8", "an objective and any of wgan-gp, .*, pac2, got 'r9'"),
        ("kl+r1+r2", "ring8", "two parts of a kind: 'r2'"),
        ("kl+pac", "ring8", "got 'pac'"),
        ("kl+pac3", "ring8", "batch_size must be a multiple of pack"),
        (
            "kl",
            "moons",
            "data must have modes .*, stacked-digits, stacked-mnist:ROOT.*, got 'moons'",
        ),
    ],
)
def test_bad_systems(system: str, data: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        system_config(system, data)


def test_a_suite_in_pieces(tmp_path: Path) -> None:
    said: list[str] = []
    more = {"say": said.append, **TINY}
    killed = tmp_path / "ring8" / "r3gan" / "seed-0"
    killed.mkdir(parents=True)
    (killed / "config.yaml").write_text("model: dcgan\n")
    first = mode_suite.run_suite(["r3gan"], ["ring8"], [0], tmp_path, **more)
    written = (tmp_path / "ring8" / "r3gan" / "seed-0" / "modes.json").stat().st_mtime_ns
    rows = mode_suite.run_suite(["r3gan", "kl+pac2"], ["ring8"], [0, 1], tmp_path, **more)
    assert (tmp_path / "ring8" / "r3gan" / "seed-0" / "modes.json").stat().st_mtime_ns == written
    assert [row["system"] for row in rows] == ["r3gan", "kl+pac2"]
    assert rows[0]["runs"][0] == first[0]["runs"][0]
    assert [run["seed"] for run in rows[1]["runs"]] == [0, 1]
    modes = [run["modes"] for run in rows[1]["runs"]]
    assert rows[1]["modes"][0] == sum(modes) / 2
    assert len(said) == 5
    assert json.loads((tmp_path / "modes.json").read_text())[0]["of"] == 8
    assert Image.open(tmp_path / "ring8.png").size[0] > 200
    assert (tmp_path / "ring8" / "kl+pac2" / "seed-1" / "samples.png").is_file()
    assert "kl+pac2" in mode_suite.table(rows)
    with pytest.raises(ValueError, match="seed-0 holds a run of other settings"):
        mode_suite.run_suite(["r3gan"], ["ring8"], [0], tmp_path, **{**more, "steps": 4})


def test_a_run_that_leaves_the_finite_numbers_is_a_result(tmp_path: Path) -> None:
    """With a step this wide exp(v) overflows at once."""
    rows = mode_suite.run_suite(
        ["kl", "r3gan"], ["ring8"], [0], tmp_path,
        say=lambda _: None, **{**TINY, "learning_rate": 1e6, "log_every": 1, "steps": 9},
    )  # fmt: skip
    run = rows[0]["runs"][0]
    assert (run["modes"], run["high_quality"], run["kl"]) == (0, 0.0, None)
    assert "broken down" in run["diverged"]
    assert "-" in mode_suite.table(rows[:1])


def test_stacked_digits(tmp_path: Path) -> None:
    rows = mode_suite.run_suite(
        ["non-saturating"], ["stacked-digits"], [0], tmp_path, say=lambda _: None, **TINY
    )
    run = rows[0]["runs"][0]
    assert (run["of"], run["samples"], run["high_quality"]) == (1000, 26_000, None)
    assert 1 <= run["modes"] < 1000
    assert run["classifier_accuracy"] > 0.95
    assert list(tmp_path.glob("classifier-8.safetensors"))
    assert (tmp_path / "stacked-digits.png").is_file()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    pf.gan.train("r3gan", data="grid25", out=run, **TINY)
    assert cli.main(["evaluate", "modes", str(run), "--samples", "100"]) == 0
    assert "of 25 modes" in capsys.readouterr().out
    assert json.loads((run / "modes.json").read_text())["samples"] == 100
    words = ["evaluate", "modes", "--data", "ring8", "--systems", "hinge", "--seeds", "3"]
    assert cli.main([*words, "--steps", "2", "--out", str(tmp_path / "suite")]) == 0
    text = capsys.readouterr().out
    assert "hinge" in text
    assert "seed 3" in text
    assert text.rstrip().endswith("modes.json")
    for bad, says in (
        (["--seeds", "a"], "--seeds must be numbers"),
        (["--systems", "hing"], "did you mean 'hinge'"),
        (["--data", "moons"], "data must have modes"),
        ([str(run), "--samples", "0"], "--samples must be at least 1"),
        ([str(tmp_path / "none")], "holds no run"),
    ):
        assert cli.main(["evaluate", "modes", *bad]) == 2
        assert says in capsys.readouterr().err
