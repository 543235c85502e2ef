"""The presets there are, and the runs that were made from them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyfastgan.training import TrainConfig


FAMILIES = ("gan", "flow", "vae", "diffusion", "autoregressive")


def all_presets() -> dict[str, tuple[ModuleType, TrainConfig]]:
    """The presets of every family, with the module that trains them."""
    found = {}
    for name in FAMILIES:
        family = importlib.import_module(f"pyfastgan.{name}")
        found.update({preset: (family, config) for preset, config in family.PRESETS.items()})
    return found


def unknown(kind: str, name: str, known: Any) -> str:
    from pyfastgan._names import nearest

    return f"unknown {kind} {name!r}{nearest(name, known)} (known: {', '.join(known)})"


def known_run(run: Path, presets: dict[str, Any]) -> str:
    """The preset of a run."""
    from pyfastgan.training import run_name

    name = run_name(run)
    if name not in presets:
        raise ValueError(f"{run}: {unknown('preset', name, presets)}")
    return name


def own_command(words: list[str]) -> Any:
    """The module `command` of the family whose run is named, if it has further options."""
    runs = [Path(word) for word in words if (Path(word) / "config.yaml").is_file()]
    if not runs:
        return None
    presets = all_presets()
    return getattr(presets[known_run(runs[0], presets)][0], "command", None)


def load(run: Path) -> tuple[ModuleType, Any]:
    """The family of a run, and the model to sample from."""
    presets = all_presets()
    family = presets[known_run(run, presets)][0]
    return family, family.load(run, **decoding(run_value(run, "codes")))


def decoding(codes: Any) -> dict[str, Any]:
    """What a prior over the codes of another run needs besides: the way from them to images.

    Args:
        codes: What a configuration has under that name: the folder of the other run, or something
            else in a family whose runs are no priors.
    """
    if not isinstance(codes, str):
        return {}
    run, presets = Path(codes), all_presets()
    family = presets[known_run(run, presets)][0]
    if not hasattr(family, "decode"):
        raise ValueError(f"{run}: {family.__name__} has no codes to decode")
    return {"decode": lambda values: family.decode(run, values)}


def run_data(run: Path) -> str:
    """The name of the data that a run was trained on."""
    return str(run_value(run, "data"))


def run_value(run: Path, key: str) -> Any:
    """What the configuration of a run has under a key."""
    from pyfastgan.training.config import read_config_file

    return read_config_file(run / "config.yaml").get(key)
