"""The worked example of docs/adding-an-op.md: its two files and one line add an op."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

from pyfastgan import testing

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "adding-an-op.md").read_text()
FILES = dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', PAGE, re.DOTALL))
SOURCE, KERNEL = "pyfastgan/ops/softsign.py", "csrc/cpu/softsign.cpp"
LIST = "pyfastgan/ops/__init__.py"
# What the example needs of the project; none of the other ops' kernels.
PARTS = ("pyfastgan", "csrc", "CMakeLists.txt", "tests/ops/test_contract.py")


def run(folder, *command):
    # Threads that wait asleep: beside other tests on the same cores they would be slow.
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "passive"}
    environment.pop("PYFASTGAN_BACKEND", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contract_tests(folder, which):
    """How many contract tests of the example ran and passed."""
    words = ["tests/ops/test_contract.py", "-q", "-k", which, "-p", "no:cacheprovider"]
    out = run(folder, sys.executable, "-m", "pytest", "--import-mode=importlib", *words)
    return int(re.search(r"(\d+) passed", out)[1])


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package without compiled modules, and with the page's files in it."""
    folder = tmp_path_factory.mktemp("package")

    def unwanted(_, names):
        compiled = [n for n in names if n.endswith((".so", ".cpp")) and n != "module.cpp"]
        return [*compiled, *{"__pycache__", "cuda"}.intersection(names)]

    for part in PARTS:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target, ignore=unwanted)
        else:
            shutil.copy(ROOT / part, target)
    (folder / SOURCE).write_text(FILES[SOURCE])
    (folder / KERNEL).write_text(FILES[KERNEL])
    with (folder / LIST).open("a") as listed:
        listed.write(FILES[LIST] + '__all__ += ["softsign"]\n')
    return folder


def test_the_page_adds_two_files_and_one_line():
    assert set(FILES) == {SOURCE, KERNEL, LIST}
    assert FILES[LIST].count("\n") == 1
    assert not (ROOT / SOURCE).exists()
    assert not (ROOT / KERNEL).exists()


# Of a sample on a backend: each check once, or in each of the four dtypes.
TESTS = len(testing.PER_SAMPLE) + 4 * len(testing.PER_DTYPE)


def test_python_alone_makes_an_op_that_keeps_the_contract(package):
    path = package / SOURCE
    whole = path.read_text()
    without_kernels, dropped = re.subn(r"\n    cpu=.*", "", whole)
    assert dropped == 2
    path.write_text(without_kernels)
    try:
        listed = run(package, sys.executable, "-c", "import pyfastgan as pf; print(pf.ops.__all__)")
        assert "'softsign'" in listed
        assert contract_tests(package, "softsign and (vectors or integers)") == TESTS + 1
    finally:
        path.write_text(whole)


def test_its_kernel_is_built_tested_and_measured(package):
    build = [
        *("cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DPYFASTGAN_CUDA=off"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_INSTALL_PREFIX={package / 'pyfastgan'}",
    ]
    run(package, *build)
    run(package, "cmake", "--build", "build", "--target", "install")
    assert contract_tests(package, "softsign-cpu") == 4 * TESTS

    arguments = ["--quick", "--force", "--no-compile", "--only", "softsign", "--json", "rows.json"]
    code = f"import sys; from pyfastgan import bench; sys.exit(bench.main({arguments}))"
    assert "softsign fwd, 64,64,32,32" in run(package, sys.executable, "-c", code)
    (row,) = json.loads((package / "rows.json").read_text())["rows"]
    assert row["backend"] == "cpu"
    assert row["disagreement"] is None
    assert row["contestants"]["ours"]["seconds"] > row["limit"] / 10
    assert row["ratios"]["eager"] > 0
