"""The configuration of a run: typed, checked, read from a file or a mapping, saved with the run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pyfastgan._names import check_choice, nearest

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true")


@dataclass(kw_only=True)
class TrainConfig:
    """What every trainer needs to know; a family adds its own fields in a subclass.

    Args:
        data: Name of a data set that `pyfastgan.data.load` understands.
        steps: Optimisation steps of the whole run.
        batch_size: Samples a step, over all devices together.
        seed: Seed of the networks, the order of the data and the noise.
        accelerator: Where to compute: auto, cpu, cuda, mps.
        devices: Number of devices (processes); under torchrun that is its number of processes.
        precision: 32-true, 16-mixed, bf16-mixed, bf16-true, 16-true or 64-true.
        cuda_graph: Capture whole training steps in CUDA graphs and replay them: for small networks,
            whose kernels are over sooner than they are launched. For one CUDA device, not for
            16-mixed, and not for configurations whose steps differ in more than data and noise. The
            noise is another than without.
        ema_decay: Decay a step of the averaged weights that are sampled from; 0 turns averaging
            off.
        log_every: Steps between two rows of metrics.csv.
        sample_every: Steps between two sample pictures; 0 draws only the last.
        checkpoint_every: Steps between two checkpoints; 0 saves only at the end.
        sample_count: Samples in a picture.
    """

    data: str = "digits"
    steps: int = 2000
    batch_size: int = 64
    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    cuda_graph: bool = False
    ema_decay: float = 0.999
    log_every: int = 10
    sample_every: int = 500
    checkpoint_every: int = 500
    sample_count: int = 64

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "devices", "log_every", "sample_count"):
            check_number(name, getattr(self, name), int, at_least=1)
        for name in ("seed", "sample_every", "checkpoint_every"):
            check_number(name, getattr(self, name), int, at_least=0)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        check_number("ema_decay", self.ema_decay, float, at_least=0)
        if self.ema_decay >= 1:
            raise ValueError(f"ema_decay must be below 1, got {self.ema_decay}")
        check_choice("precision", self.precision, PRECISIONS)
        if self.cuda_graph and (self.devices > 1 or self.precision == "16-mixed"):
            raise ValueError(
                "cuda_graph=True is for one device and not for precision='16-mixed', whose scaling"
                f" waits for the device; got devices={self.devices}, precision={self.precision!r}"
            )
        if self.batch_size % self.devices:
            raise ValueError(
                "batch_size must be a multiple of devices,"
                f" got {self.batch_size} and {self.devices}"
            )


# What a resumed run may change without becoming another run.
RESUMABLE_KEYS = frozenset(
    {
        "steps",
        "accelerator",
        "devices",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "sample_count",
    }
)

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def check_number(name: str, value: Any, kind: type, *, at_least: float) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number of that kind."""
    allowed = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} must be {kind.__name__}, got {value!r}")
    if not math.isfinite(value) or value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def resolve_config(
    cls: type[ConfigT], source: ConfigT | Mapping[str, Any] | str | Path, **overrides: Any
) -> ConfigT:
    """Make a checked configuration of class `cls`.

    Args:
        cls: The configuration class.
        source: An instance, a mapping of fields, or the path of a YAML or JSON file. The
            `config.yaml` of a run is one.
        overrides: Fields that replace those of the source.

    Returns:
        A new instance; the source is not changed.

    Raises:
        ValueError: An unknown key (with the nearest one), a value of the wrong type, an unreadable
            file.
        TypeError: A source of another kind.
    """
    if isinstance(source, (str, Path)):
        values, origin = read_config_file(source), f"{source}: "
    elif isinstance(source, Mapping):
        values, origin = dict(source), ""
    elif isinstance(source, cls):
        values, origin = to_dict(source), ""
    else:
        raise TypeError(
            f"config must be a {cls.__name__}, a mapping or the path of a file,"
            f" got {type(source).__name__}"
        )
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(f"{origin}{unknown_key(key, known)}")
    for key in overrides:
        if key not in known:
            raise ValueError(unknown_key(key, known))
    return _build(cls, {**values, **overrides}, origin)


def unknown_key(key: object, known: Iterable[str]) -> str:
    """The message for a key that is no field."""
    known = list(known)
    return f"unknown key {key!r}{nearest(key, known)} (known keys: {', '.join(known)})"


def _build(cls: type[ConfigT], values: dict[str, Any], origin: str) -> ConfigT:
    """Let jsonargparse hold values against annotations (so '1e-3' from YAML becomes a float)."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    try:
        parsed = parser.parse_object(values)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"{origin}{readable(error)}") from None
    return cls(**vars(parsed))


def readable(error: Exception) -> str:
    """A jsonargparse message on one line, in the words of someone who wrote `steps: abc`."""
    text = " ".join(str(getattr(error, "message", None) or error).split())
    text = re.sub(r"^Parser key \"([\w.]+)\":", r"\1:", text)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return text.replace("typing.", "").replace(". Got value:", ", got")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The fields as plain values, in order."""
    return dataclasses.asdict(config)


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, in the given order."""
    return yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True, width=100)


def plain(value: Any) -> Any:
    """The value with tuples turned into lists, as YAML and checkpoints hold it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


# Keys that a run's own config.yaml holds beside the fields.
RUN_KEYS = ("model", "pyfastgan")


def read_config_file(path: str | Path, *, run_keys: bool = False) -> dict[str, Any]:
    """Read a mapping from a YAML or JSON file (JSON is YAML).

    Args:
        path: The file.
        run_keys: Keep `model` and `pyfastgan`, which `config.yaml` in a run folder has beside the
            fields.

    Raises:
        ValueError: The file is missing, unreadable, or holds no mapping; the message names it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read the configuration file {path}: {error.strerror or error}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the configuration file {path} is not YAML or JSON: {reason}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(
            f"the configuration file {path} must hold `key: value` lines,"
            f" got {type(values).__name__}"
        )
    if not run_keys:
        for key in RUN_KEYS:
            values.pop(key, None)
    return values
