"""A run on disk: the names of its files, its configuration and its history."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfastgan import __version__
from pyfastgan.training.config import (
    TrainConfig,
    read_config_file,
    resolve_config,
    to_dict,
    to_yaml,
)
from pyfastgan.training.files import write_text


@dataclass(frozen=True)
class Run:
    """A trained model's folder.

    Args:
        path: The folder.
        name: The preset that was trained.
        config: Its resolved configuration.
    """

    path: Path
    name: str
    config: TrainConfig

    @classmethod
    def open(cls, path: str | Path, config_class: type[TrainConfig]) -> Run:
        """Read the run in a folder.

        Raises:
            ValueError: No run there, or its configuration is of another class.
        """
        path = Path(path)
        name = run_name(path)
        return cls(path, name, resolve_config(config_class, path / "config.yaml"))

    @property
    def config_file(self) -> Path:
        """The resolved configuration, with the preset's name and the version of the library."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One CSV row every `log_every` steps."""
        return self.path / "metrics.csv"

    @property
    def samples(self) -> Path:
        """The last picture of samples; the earlier ones are in `samples/`."""
        return self.path / "samples.png"

    @property
    def losses(self) -> Path:
        """The loss curves."""
        return self.path / "losses.png"

    @property
    def weights(self) -> Path:
        """The weights to sample from, as safetensors."""
        return self.path / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """All that is needed to go on."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv: `step`, `images` int, the rest float; None for an empty cell."""
        return read_metrics(self.metrics)

    def step_picture(self, step: int) -> Path:
        """The picture of samples drawn after a step."""
        return self.path / "samples" / f"step-{step:06d}.png"

    def existing(self) -> list[str]:
        """The names in the folder that a new run would overwrite."""
        names = ["config.yaml", "metrics.csv", "samples", "samples.png", "losses.png"]
        names += ["weights.safetensors", "checkpoints", "tensorboard"]
        return [name for name in names if (self.path / name).exists()]

    def save_config(self) -> None:
        """Write config.yaml."""
        head = {"model": self.name, "pyfastgan": __version__}
        write_text(self.config_file, to_yaml({**head, **to_dict(self.config)}))


def run_name(path: str | Path) -> str:
    """The preset that the run in a folder was trained from.

    Raises:
        ValueError: The folder holds no run.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path} holds no run (it has no config.yaml)")
    name = read_config_file(path / "config.yaml", run_keys=True).get("model")
    if not isinstance(name, str):
        raise ValueError(f"{path / 'config.yaml'} does not name its model")
    return name


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.csv; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [
        {key: _number(key, value) for key, value in row.items()} for row in csv.DictReader(lines)
    ]


def _number(key: str, value: str | None) -> int | float | None:
    if not value:
        return None
    return int(value) if key in ("step", "images") else float(value)
