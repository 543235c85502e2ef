"""The Triton kernels compile ahead of time on the oldest Triton that is supported too, within the same allowances.

The tests use the newest one. The older is installed into a folder of its own, and both keep their code, in build/.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_triton_3_6():
    folder = ROOT / "build" / "triton-3.6.0"
    if not folder.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*install, str(folder), "triton==3.6.0"], check=True)
    path = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": path, "PYFASTGAN_NEED_GPU_TOOLS": "1"}
    version = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    found = subprocess.check_output(version, text=True, env=environment, cwd=ROOT)
    assert found.strip() == "3.6.0"
    tests = ["tests/kernels/test_triton.py", "-k", "compiling"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout", "0", *tests],
        check=True,
        env=environment,
        cwd=ROOT,
    )
