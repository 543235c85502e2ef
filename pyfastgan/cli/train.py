"""The command `pyfastgan train`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from pyfastgan._names import nearest
from pyfastgan.cli.parser import Parser
from pyfastgan.cli.runs import all_presets, decoding, unknown

if TYPE_CHECKING:
    from pyfastgan.training import TrainConfig


# What others call an option.
_MEANT = {
    **dict.fromkeys(("device", "gpu", "cuda"), "accelerator"),
    **dict.fromkeys(("dtype", "amp", "bf16", "fp16"), "precision"),
    **dict.fromkeys(("epochs", "iterations", "max_steps"), "steps"),
    **dict.fromkeys(("lr", "learning-rate"), "learning_rate"),
    **dict.fromkeys(("dataset", "dataroot"), "data"),
}
_RUN_OPTIONS = ("config", "out", "resume", "help")


def train(words: list[str]) -> int:
    from pyfastgan.training.config import resolve_config, to_dict, to_yaml

    presets = all_presets()
    if not words or words[0].startswith("-"):
        return _train_help(words, presets)
    name, words = words[0], words[1:]
    if name not in presets:
        raise ValueError(unknown("preset", name, presets))
    family, preset = presets[name]
    parser = _train_parser(name, preset)
    _check_options(name, words, preset)
    first = parser.parse_args(words)
    out = Path(first.out)
    files = [first.config] if first.config is not None else []
    if first.resume:
        _check_name(out, name)
        files.insert(0, out / "config.yaml")

    def choose(base: TrainConfig) -> dict[str, Any]:
        # Later ones win: the preset, the run that is resumed, the file, the command line.
        for file in files:
            base = _with_file(base, file)
        parser.set_defaults(to_dict(base))
        return vars(parser.parse_args(words))

    chosen = choose(preset)
    if hasattr(family, "preset"):  # one that has other presets for other kinds of data
        chosen = choose(family.preset(name, chosen["data"]))
    values = {key: value for key, value in chosen.items() if key not in _RUN_OPTIONS}
    config = resolve_config(type(preset), values)
    if _first_process():
        print(to_yaml({"model": name, "out": str(out), **to_dict(config)}), end="", flush=True)
    decoder = decoding(getattr(config, "codes", None))
    run = family.train(name, out=out, resume=first.resume, **decoder, **to_dict(config))
    if _first_process():
        files = sorted(path for path in run.path.iterdir() if path.is_file())
        for path in sorted(files, key=lambda path: path == run.samples):
            print(path)
    return 0


def _train_help(words: list[str], presets: dict[str, tuple[ModuleType, TrainConfig]]) -> int:
    parser = Parser(
        prog="pyfastgan train",
        usage="pyfastgan train PRESET [options]",
        description="Train a model. `pyfastgan train PRESET --help` lists its options.",
        epilog=f"presets: {', '.join(presets)}",
    )
    parser.parse_args(words)
    raise ValueError(f"train needs the name of a preset (known: {', '.join(presets)})")


def _train_parser(name: str, preset: TrainConfig) -> Any:
    """Options of one preset: the fields of its configuration, typed, and those of the run."""
    from jsonargparse import ArgumentParser

    from pyfastgan.training.config import readable, to_dict

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(readable(ex or ValueError(message)))

    parser = Parser(prog=f"pyfastgan train {name}")
    parser.add_argument("--config", help="YAML or JSON file of options; those given here win")
    parser.add_argument("--out", default=f"runs/{name}", help="folder of the run")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the folder"
    )
    parser.add_class_arguments(type(preset))
    parser.set_defaults(to_dict(preset))
    return parser


def _check_options(name: str, words: list[str], preset: TrainConfig) -> None:
    """Name the nearest option for one that does not exist (argparse only says that it does not)."""
    known = [*_RUN_OPTIONS, *(field.name for field in dataclasses.fields(preset))]
    for word in words:
        option = word[2:].split("=")[0]
        if word.startswith("--") and option not in known:
            near = nearest(f"--{_MEANT.get(option, option)}", [f"--{key}" for key in known])
            raise ValueError(
                f"unknown option '--{option}'{near} (`pyfastgan train {name} --help` lists them)"
            )


def _check_name(out: Path, name: str) -> None:
    """Refuse to resume a run of another preset before its options are taken over."""
    from pyfastgan.training.run import run_name

    found = run_name(out)
    if found != name:
        raise ValueError(f"cannot resume {out}: it is a run of {found!r}, not of {name!r}")


def _with_file(base: TrainConfig, path: str | Path) -> TrainConfig:
    """The configuration with what a file says; an error names the file."""
    from pyfastgan.training.config import read_config_file, resolve_config, to_dict

    values = {**to_dict(base), **read_config_file(path)}
    try:
        return resolve_config(type(base), values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _first_process() -> bool:
    """Whether this is the one of several training processes that speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
