"""Typed configuration from instances, mappings and files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pyfastgan.training.config import TrainConfig, resolve_config, to_dict, to_yaml


@dataclass(kw_only=True)
class FamilyConfig(TrainConfig):
    """A family's own fields, of the kinds that families use."""

    rate: float = 2e-4
    loss: Literal["hinge", "minimax"] = "hinge"
    widths: tuple[int, ...] = (1, 2)
    classes: int | None = None


def test_file_mapping_and_instance_agree_and_overrides_win(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"steps": 7, "widths": [3, 4], "classes": 2, "loss": "minimax"}
    (tmp_path / "c.yaml").write_text(to_yaml(fields))
    (tmp_path / "c.json").write_text(json.dumps(fields))
    expected = FamilyConfig(steps=7, widths=(3, 4), classes=2, loss="minimax")
    for source in (fields, tmp_path / "c.yaml", str(tmp_path / "c.json"), expected):
        assert resolve_config(FamilyConfig, source) == expected
    assert resolve_config(FamilyConfig, expected, steps=9).steps == 9
    assert expected.steps == 7, "the source is not changed"


def test_a_saved_configuration_is_read_back_the_same(tmp_path: Path) -> None:
    config = FamilyConfig(rate=1e-5, widths=(8, 16, 32), seed=2**60)
    (tmp_path / "c.yaml").write_text(to_yaml({"model": "x", "pyfastgan": "1", **to_dict(config)}))
    assert resolve_config(FamilyConfig, tmp_path / "c.yaml") == config


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    # PyYAML alone reads 1e-3 as a string.
    (tmp_path / "c.yaml").write_text("rate: 1e-3\n")
    assert resolve_config(FamilyConfig, tmp_path / "c.yaml").rate == 1e-3


def test_unknown_keys_are_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("stps: 3\n")
    with pytest.raises(ValueError, match=r"c\.yaml: unknown key 'stps'; did you mean 'steps'\?"):
        resolve_config(FamilyConfig, tmp_path / "c.yaml")
    with pytest.raises(ValueError, match=r"unknown key 'bach_size'; did you mean 'batch_size'\?"):
        resolve_config(FamilyConfig, {"bach_size": 3})
    with pytest.raises(ValueError, match=r"unknown key 'rat'; did you mean 'rate'\?"):
        resolve_config(FamilyConfig, FamilyConfig(), rat=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": "abc"}, "steps: Expected a int, got abc"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"loss": "wgan"}, "loss.*hinge"),
        ({"widths": "x"}, "widths"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"ema_decay": float("nan")}, "ema_decay must be at least 0, got nan"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "seed must be below"),
        (
            {"precision": "f32-true"},
            "precision must be one of .*, got 'f32-true'; did you mean '32-true'",
        ),
        ({"batch_size": 9, "devices": 2}, "batch_size must be a multiple of devices"),
    ],
)
def test_bad_values_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_config(FamilyConfig, fields)


def test_instances_made_in_python_are_checked_too() -> None:
    with pytest.raises(TypeError, match="steps must be int, got '5'"):
        TrainConfig(steps="5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="batch_size must be int, got True"):
        TrainConfig(batch_size=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "must hold `key: value` lines, got list"), ("a: [", "is not YAML or JSON")],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"c\.yaml.*{message}"):
        resolve_config(TrainConfig, tmp_path / "c.yaml")
    with pytest.raises(ValueError, match=r"cannot read the configuration file .*none\.yaml"):
        resolve_config(TrainConfig, tmp_path / "none.yaml")
    with pytest.raises(TypeError, match=r"config must be a TrainConfig, .* got int"):
        resolve_config(TrainConfig, 3)  # type: ignore[arg-type]
