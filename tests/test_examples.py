"""Every example runs, for a few steps, and leaves its picture."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(p.stem for p in EXAMPLES.glob("*.py") if p.stem != "demo")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [name, "2", str(picture)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    state = torch.get_rng_state()
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    torch.set_rng_state(state)
    with Image.open(picture) as image:
        assert len(image.convert("L").getcolors(2**24)) > 1, "an empty picture"
