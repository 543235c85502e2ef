"""The command line, with a small family of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import pyfastgan
from pyfastgan import cli
from pyfastgan import data as data_sets
from pyfastgan.training import Run, TrainConfig, fit, load_weights, resolve_config
from pyfastgan.training.checkpoint import load_checkpoint


@dataclass(kw_only=True)
class LineConfig(TrainConfig):
    """A family with one network.

    Args:
        rate: How fast it learns.
        betas: A pair.
        stop_at: Sends this process SIGINT in that step; 0 never.
    """

    rate: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    stop_at: int = 0


class Line:
    """Learns the mean of points."""

    averaged = ("net",)

    def __init__(self, config: LineConfig) -> None:
        net = nn.Linear(2, 2)
        self.config = config
        self.networks: dict[str, nn.Module] = {"net": net}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "net": torch.optim.SGD(net.parameters(), lr=config.rate)
        }

    def training_step(self, fabric: Any, batch: tuple[Tensor, ...], step: int) -> dict[str, Tensor]:
        if step == self.config.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        loss = (self.networks["net"](torch.randn_like(batch[0])) - batch[0]).square().mean()
        self.optimizers["net"].zero_grad()
        fabric.backward(loss)
        self.optimizers["net"].step()
        return {"loss": loss.detach()}

    def sample(self, networks: dict[str, nn.Module], count: int, seed: int) -> Tensor:
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        return networks["net"](noise)  # type: ignore[no-any-return]

    def pictures(self, networks: dict[str, nn.Module], folder: Path) -> None:
        pass


def line_train(config: str, *, data: str, out: Path, resume: bool = False, **overrides: Any) -> Run:
    """The signature that every family has."""
    resolved = resolve_config(LineConfig, PRESETS[config], data=data, **overrides)
    dataset = data_sets.load(resolved.data, count=64)
    return fit(lambda: Line(resolved), dataset, resolved, out, name=config, resume=resume)


class Sampler:
    def __init__(self, path: Path) -> None:
        self.net = nn.Linear(2, 2)
        load_weights(Run.open(path, LineConfig).weights, {"net": self.net})

    def sample(self, count: int, seed: int) -> Tensor:
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        return self.net(noise)  # type: ignore[no-any-return]


PRESETS = {
    "line": LineConfig(data="ring8", steps=6, batch_size=16, accelerator="cpu", log_every=2),
    "lime": LineConfig(data="moons"),
}


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("pyfastgan.linefamily")
    for name, value in (("PRESETS", PRESETS), ("train", line_train), ("load", Sampler)):
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli.runs, "FAMILIES", ("linefamily",))
    monkeypatch.chdir(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail, with one line on stderr; give the line."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyfastgan: error: ")
    assert err.count("\n") == 1
    return err


def test_train_prints_the_configuration_and_the_paths(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "line", "--steps", "4", "--betas", "[0.1, 0.2]", "--rate=1e-2"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    head, paths = out[: out.index("runs/line/")], out[out.index("runs/line/") :].splitlines()
    printed = yaml.safe_load(head)
    assert printed.pop("out") == "runs/line"
    saved = yaml.safe_load(Path("runs/line/config.yaml").read_text())
    assert printed == {key: value for key, value in saved.items() if key != "pyfastgan"}
    assert (printed["steps"], printed["betas"], printed["rate"]) == (4, [0.1, 0.2], 0.01)
    assert printed["data"] == "ring8", "the preset's own default"
    assert all(Path(path).is_file() for path in paths)
    assert paths[-1] == "runs/line/samples.png"


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset() -> None:
    Path("mine.yaml").write_text("steps: 3\nseed: 5\nrate: 1e-3\n")
    words = ["train", "line", "--seed", "7", "--config", "mine.yaml", "--out", "r"]
    assert cli.main(words) == 0
    config = Run.open("r", LineConfig).config
    assert isinstance(config, LineConfig)
    assert (config.steps, config.seed, config.rate, config.batch_size) == (3, 7, 1e-3, 16)
    # The configuration of a run is such a file.
    assert cli.main(["train", "line", "--config", "r/config.yaml", "--out", "again"]) == 0
    assert (
        Path("again/weights.safetensors").read_bytes() == Path("r/weights.safetensors").read_bytes()
    )


def test_ctrl_c_saves_says_how_to_go_on_and_ends_with_130(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = ["train", "line", "--out", "r", "--batch_size", "32"]
    assert cli.main([*first, "--stop_at", "3"]) == 130
    err = capsys.readouterr().err
    assert "stopped after step 3 of 6" in err
    assert "--resume --out r" in err
    # A resumed run keeps the options it was started with.
    assert cli.main(["train", "line", "--out", "r", "--resume"]) == 0
    run = Run.open("r", LineConfig)
    assert [row["step"] for row in run.history] == [2, 4, 6]
    assert run.config.batch_size == 32
    cli.main([*first[:3], "whole", *first[4:], "--stop_at", "0"])
    whole = Path("whole/weights.safetensors").read_bytes()
    assert run.weights.read_bytes() == whole


def test_mistakes_in_training_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("stps: 3\n")
    cases = [
        (["train"], "train needs the name of a preset (known: line, lime)"),
        (["train", "lin"], "unknown preset 'lin'; did you mean 'line'? (known: line, lime)"),
        (["train", "line", "--stps", "3"], "unknown option '--stps'; did you mean '--steps'?"),
        (["train", "line", "--device", "cuda"], "did you mean '--accelerator'?"),
        (["train", "line", "--batch-size=3"], "did you mean '--batch_size'?"),
        (["train", "line", "--dtype", "bfloat16"], "did you mean '--precision'?"),
        (["train", "line", "--epochs", "3"], "did you mean '--steps'?"),
        (["train", "line", "--steps", "many"], "steps: Expected a int, got many"),
        (["train", "line", "--steps", "0"], "steps must be at least 1, got 0"),
        (["train", "line", "--steps"], "expected one argument"),
        (["train", "line", "stray"], "stray"),
        (["train", "line", "--config", "bad.yaml"], "bad.yaml: unknown key 'stps'; did you mean"),
        (["train", "line", "--config", "none.yaml"], "cannot read the configuration file none.ya"),
        (["train", "line", "--data", "ring9"], "unknown data set 'ring9'; did you mean 'ring8'?"),
        (["train", "line", "--batch_size", "65"], "64 items, fewer than batch_size=65"),
        (["train", "line", "--resume"], "runs/line holds no run"),
    ]
    for words, message in cases:
        assert cli.main(words) == 2, words
        out, err = capsys.readouterr()
        assert message in err, words
        assert err.startswith("pyfastgan: error: ")
        assert err.count("\n") == 1, words
        assert "Traceback" not in err + out
    assert sorted(path.name for path in Path().iterdir()) == ["bad.yaml"], "no run folder is left"


def test_a_backend_that_cannot_serve_is_a_mistake_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(words: list[str]) -> int:
        raise pyfastgan.BackendError("backend 'cuda' is not available: no GPU")

    monkeypatch.setitem(cli.COMMANDS, "train", (refused, ""))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == (
        "pyfastgan: error: backend 'cuda' is not available: no GPU\n"
    )


def test_a_run_is_not_overwritten_and_not_resumed_as_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "line", "--out", "r"]) == 0
    capsys.readouterr()
    before = Path("r/weights.safetensors").stat().st_mtime_ns
    assert cli.main(["train", "line", "--out", "r"]) == 2
    assert "r already holds a run" in capsys.readouterr().err
    assert "it is a run of 'line', not of 'lime'" in fails(
        capsys, "train", "lime", "--out", "r", "--resume"
    )
    assert cli.main(["train", "line", "--out", "r", "--resume", "--rate", "3", "--steps", "9"]) == 2
    assert "another configuration: rate was 0.1, now 3.0" in capsys.readouterr().err
    assert Path("r/weights.safetensors").stat().st_mtime_ns == before
    assert cli.main(["train", "line", "--out", "r", "--resume", "--steps", "9"]) == 0
    assert load_checkpoint(Path("r/checkpoints/last.ckpt"))["step"] == 9


def test_sample_draws_from_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "line", "--out", "r"]) == 0
    capsys.readouterr()
    pictures = []
    for words in (["--seed", "1"], ["--seed", "2"], ["--seed", "1", "--out", "deep/here.png"]):
        assert cli.main(["sample", "r", "--count", "5", *words]) == 0
        pictures.append(Path(capsys.readouterr().out.strip()))
    assert pictures[0] == Path("r/samples/seed-1-count-5.png")
    assert pictures[2] == Path("deep/here.png")
    contents = [path.read_bytes() for path in pictures]
    assert contents[0] == contents[2] != contents[1]
    assert "--count must be at least 1, got 0" in fails(capsys, "sample", "r", "--count", "0")
    assert "--seed must be at least 0, got -1" in fails(capsys, "sample", "r", "--seed", "-1")
    assert "must be a .png file, got x.jpg" in fails(capsys, "sample", "r", "--out", "x.jpg")
    assert "none holds no run" in fails(capsys, "sample", "none")
    assert "invalid int value: 'x'" in fails(capsys, "sample", "r", "--count", "x")
    Path("r/weights.safetensors").write_bytes(b"half")
    assert "cannot read the weights r/weights.safetensors" in fails(capsys, "sample", "r")


def test_list_names_presets_data_and_ops(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    words = capsys.readouterr().out.split()
    for name in ("line", "lime", *data_sets.names(), *pyfastgan.ops.__all__):
        assert name in words, name


def test_info_and_bench_hand_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, seen = ModuleType("pyfastgan.bench"), []
    bench.main = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyfastgan.bench", bench)
    monkeypatch.setattr(pyfastgan, "bench", bench, raising=False)
    monkeypatch.setattr(pyfastgan, "info_text", lambda: "which backend", raising=False)
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == "which backend\n"
    assert cli.main(["bench", "--op", "x"]) == 0
    assert seen == [["--op", "x"]]


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyfastgan {pyfastgan.__version__}\n"
    assert "unknown command 'lst'; did you mean 'list'?" in fails(capsys, "lst")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "line", "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "How fast it learns." in out
    assert "default: ring8" in out


WITHOUT_EXTRAS = """
import sys

missing = {"jsonargparse", "lightning_fabric", "yaml", "tqdm", "sklearn", "matplotlib", "PIL"}
missing |= {"safetensors", "tensorboard", "torchmetrics"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import pyfastgan
pyfastgan.info_text = lambda: "which backend"
from pyfastgan.cli import main
assert main([]) == main(["info"]) == main(["list"]) == 0
sys.exit(main(["train", "dcgan"]))
"""


def test_info_and_list_work_without_the_training_extra() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    hint = "is not installed: pip install 'pyfastgan[train]'\n"
    assert done.stderr.startswith("pyfastgan: error: ")
    assert done.stderr.endswith(hint)
    assert done.stderr.count("\n") == 1
    assert hint in done.stdout, "list says what is missing"
    assert "which backend" in done.stdout
    assert pyfastgan.ops.__all__[0] in done.stdout


def test_the_module_runs_as_the_script_does() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "pyfastgan", "nonsense"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("pyfastgan: error: unknown command 'nonsense'")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "pyfastgan", "--version"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_an_interruption_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", (command, ""))
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "\npyfastgan: interrupted\n"
