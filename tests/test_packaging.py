"""What a wheel holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_in_the_wheel():
    """An editable install finds a folder that pyproject.toml does not list; a wheel leaves it out."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "pyfastgan").rglob("__init__.py")
    }
    assert set(listed) == found | {"pyfastgan.kernels"}
