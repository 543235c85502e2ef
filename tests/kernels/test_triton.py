"""The Triton kernels without a GPU: they run in Triton's interpreter, and compile ahead of time.

The interpreter and the compiler need a process each. Without Triton there is nothing to test, which a warning says;
PYFASTGAN_NEED_GPU_TOOLS=1 makes it an error.
"""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
TRITON = importlib.util.find_spec("triton") is not None
# Of the contract, what a kernel can break; how an operator is registered is tested with the other backends.
CHECKS = (
    "check_values and (f32 or clamp)",
    "check_same_bits-f32 and gelu",
    "check_layouts",
    "check_not_finite",
)
# A program takes milliseconds there: the large sample call has thousands, and small_tiles in interpreted.py its paths.
CONTRACT = f"bias_act-triton and not large and ({' or '.join(CHECKS)})"


def run(*command, **environment):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment
    )


def run_in_interpreter(*arguments):
    done = run(
        *(
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::RuntimeWarning",
            *arguments,
        ),
        TRITON_INTERPRET="1",
        PYFASTGAN_BACKEND="triton",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_triton_is_found():
    if not TRITON:
        assert os.environ.get("PYFASTGAN_NEED_GPU_TOOLS") != "1", "Triton is not installed"
        warnings.warn("Triton is not installed: its kernels are not tested here", stacklevel=1)


def test_the_contract_in_the_interpreter():
    if TRITON:
        run_in_interpreter(str(HERE.parent / "ops" / "test_contract.py"), "-k", CONTRACT)


def test_the_kernels_in_the_interpreter():
    if TRITON:
        run_in_interpreter(str(HERE / "interpreted.py"))


def test_compiling_ahead_of_time(tmp_path):
    """Nothing spills, what lies evenly in memory is moved 16 bytes at a time, and half of the threads fit."""
    if not TRITON:
        return
    done = run(str(HERE / "ahead_of_time.py"), TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(k["kernel"], k["sm"]) for k in kernels} == {
        (name, sm)
        for name in ("forward_kernel", "derivative_kernel", "sum_kernel", "fill_kernel")
        for sm in (80, 90)
    }
    for k in kernels:
        # Another version of Triton may spill a few bytes where this one spills none.
        assert k["STACK"] + k["LOCAL"] <= 16, k
        assert k["REG"] <= 128, k
        if k["kernel"] in ("forward_kernel", "derivative_kernel") and "odd" not in k["label"]:
            assert k["vectors"] >= 3, k
