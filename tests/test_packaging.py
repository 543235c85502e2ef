"""What the source archive and the wheel hold."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
IGNORED = shutil.ignore_patterns("__pycache__", "*.so")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The sdist of this tree, and the wheel that is built of it without compiled modules."""
    work = tmp_path_factory.mktemp("packaging")
    source = work / "source"
    for folder in ("csrc", "pyfastgan", "kernels"):
        shutil.copytree(ROOT / folder, source / folder, ignore=IGNORED)
    # A checkout may link kernels/ where a wheel has it.
    shutil.rmtree(source / "pyfastgan" / "kernels", ignore_errors=True)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, source)

    def build(kind, folder):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(work)!r})"
        environment = {**os.environ, "PYFASTGAN_BUILD": "none"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    build("sdist", source)
    (sdist,) = work.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked")  # our own; `filter` is newer than Python 3.11.0
    (unpacked,) = (work / "unpacked").iterdir()
    build("wheel", unpacked)
    (wheel,) = work.glob("*.whl")
    return unpacked, wheel


def test_every_package_is_listed():
    """An editable install finds a folder that pyproject.toml does not list; a wheel leaves it out."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "pyfastgan").rglob("__init__.py")
    }
    assert set(listed) == found | {"pyfastgan.kernels"}


def test_the_sdist_can_be_compiled_and_the_wheel_is_whole(archives):
    unpacked, wheel = archives
    for folder in ("csrc", "kernels"):
        for file in (ROOT / folder).rglob("*.*"):
            if "__pycache__" not in file.parts:
                assert (unpacked / file.relative_to(ROOT)).is_file(), file
    assert (unpacked / "CMakeLists.txt").is_file()
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [f.relative_to(ROOT).as_posix() for f in (ROOT / "pyfastgan").rglob("*.py")]
    files += [f"pyfastgan/{f.relative_to(ROOT)}" for f in (ROOT / "kernels").glob("*.py")]
    assert {*files, "pyfastgan/py.typed"} <= held
    assert not any(name.startswith(("tests", "csrc")) for name in held)


def test_the_wheel_is_imported_outside_of_the_repository(archives, tmp_path):
    zipfile.ZipFile(archives[1]).extractall(tmp_path / "site")
    code = (
        "import pyfastgan as pf\n"
        "print(pf.__file__, pf.ops.random_normal((2,), 0).shape)\n"
        "import pyfastgan.acceleration, pyfastgan.bench, pyfastgan.cli, pyfastgan.testing\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path)), done.stdout
