"""The Python blocks of README and the pages run, one after the other in one namespace a page, with two steps of
training; their commands are ones that the command line understands; their links lead somewhere.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pyfastgan as pf
from pyfastgan import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# It is a file of an op, and test_adding_an_op.py builds with it.
# gpu.md needs a GPU; tests/training/test_graphs.py has what it says.
RUN = [page for page in PAGES if page.name not in ("adding-an-op.md", "gpu.md")]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


WITH_CODE = [page for page in RUN if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in cli.runs.FAMILIES:
        module = importlib.import_module(f"pyfastgan.{family}")

        def short(*args: Any, train: Any = module.train, **fields: Any) -> Any:
            return train(*args, **{**fields, "steps": 2, "sample_every": 0})

        monkeypatch.setattr(module, "train", short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "faces").mkdir()  # docs/data.md has a folder of them
    for k in range(3):
        Image.new("RGB", (64, 64), (k, 0, 0)).save(tmp_path / "faces" / f"{k}.png")
    state = torch.get_rng_state()
    names: dict[str, Any] = {}
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)
    torch.set_rng_state(state)
    pf.use_backend("auto")


def test_the_table_of_systems_has_every_preset_with_its_data_and_steps() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \|[^|]*\| (\w+)[^|]*\| ([\d,]+) \|",
        (ROOT / "docs" / "systems.md").read_text(),
        re.MULTILINE,
    )
    presets = {}
    for family in cli.runs.FAMILIES:
        module = importlib.import_module(f"pyfastgan.{family}")
        presets |= {name: (p.data, f"{p.steps:,}") for name, p in module.PRESETS.items()}
    assert {name: (data, steps) for name, data, steps in rows} == presets


def test_readme_gives_the_times_of_the_table_of_systems() -> None:
    systems = (ROOT / "docs" / "systems.md").read_text()
    times = re.findall(r"^\| `([\w-]+)` (?:\|[^|]*){3}\| ([^|]+) \|", systems, re.MULTILINE)
    listed = re.findall(
        r"`([\w-]+)` ((?:about )?[\d.]+ (?:s|min))\b", (ROOT / "README.md").read_text()
    )
    assert sorted(listed) == sorted(times)


COMMANDS = [
    pytest.param(line.split("#")[0].strip(), id=f"{page.stem}: {line.split('#')[0].strip()}")
    for page in PAGES
    for text in blocks(page, "sh")
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("pyfastgan ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_is_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the point where it would do its work."""
    name, *words = shlex.split(command)[1:]
    assert name in cli.COMMANDS
    known = {f"--{key}" for key in ("config", "out", "resume", "help")}
    if name == "train":
        presets = cli.runs.all_presets()
        assert words[0] in presets
        known |= {f"--{key}" for key in vars(presets[words[0]][1])}
        for option in (w.split("=")[0] for w in words if w.startswith("--")):
            assert option in known, option


LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for link, image in LINK.findall(text):
        assert (page.parent / (link or image)).exists(), link or image
