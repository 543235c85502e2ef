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
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

from pyfastgan.ops._registry import ops

# The kernels that go over whole tensors.
PASSES = (
    "forward_kernel",
    "derivative_kernel",
    "backward_kernel",
    "moments_kernel",
    "sums_kernel",
    "results_kernel",
    "loss_kernel",
    "slopes_kernel",
    "scale_kernel",
    "between_kernel",
)
HERE = Path(__file__).parent
TRITON = importlib.util.find_spec("triton") is not None
# Of the contract, what a kernel can break; how an operator is registered is tested with the other backends. A program
# takes milliseconds there: large sample calls have thousands, and small_tiles in interpreted_passes.py their paths.
CONTRACT = {
    "bias_act": "check_values and (f32 or clamp) or check_same_bits-f32 and gelu or check_layouts or check_not_finite",
    "norm_act": "check_values and (f32 or f16 and points or group and last) or check_same_bits-f32 and running or "
    "(check_layouts or check_not_finite) and (last or weight)",
    "reparameterize": "check_values or check_layouts or check_not_finite",
    "bernoulli_nll": "check_values or check_layouts or check_not_finite",
    "gaussian_nll": "check_values or check_layouts or check_not_finite",
    "affine_coupling": "not many and (check_values and (f32 or f64 or bf16) or check_layouts or check_not_finite)",
    "edge_conv": "relu and check_not_finite",
    "edge_conv_transpose": "last and check_layouts",
    "conv_transpose_act": "batch and check_layouts",
    "mmd": "not several and not whole and (check_values or check_layouts or check_not_finite)",
    "upfirdn2d": "not several and not enlarge and (check_values or check_layouts or check_not_finite)",
    "nearest_code": "not several and not whole and (check_values or check_layouts or check_not_finite)",
}

# Where the kernels of an op stand under another name.
CONTRACT_MODULES = {
    "bernoulli_nll": "per_sample",
    "gaussian_nll": "per_sample",
    "edge_conv_transpose": "edge_conv",
    "norm_act": "norm_passes",
}


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
        calls = [f"{op}-triton and not large and ({what})" for op, what in CONTRACT.items()]
        run_in_interpreter(str(HERE.parent / "ops" / "test_contract.py"), "-k", " or ".join(calls))


def test_every_triton_kernel_is_in_the_contract():
    assert CONTRACT.keys() == {op.name for op in ops().values() if serves(op)}


def serves(op):
    return all("triton" in kernel.backends() for kernel in op.kernels)


@pytest.mark.parametrize("kernels", ["passes", "samples", "products"])
def test_the_kernels_in_the_interpreter(kernels):
    if TRITON:
        run_in_interpreter(str(HERE / f"interpreted_{kernels}.py"))


def compiled():
    """What the kernels take, as lines. A process for each architecture; code is kept in build/ from run to run."""
    cache = str(HERE.parents[1] / "build" / "triton")
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(
            lambda sm: run(str(HERE / "ahead_of_time.py"), sm, TRITON_CACHE_DIR=cache), ("80", "90")
        )
    for done in runs:
        assert done.returncode == 0, done.stderr
        yield from map(json.loads, done.stdout.splitlines())


def test_compiling_ahead_of_time():
    """Nothing spills, what lies evenly in memory is moved 16 bytes at a time, and half of the threads fit."""
    if not TRITON:
        return
    kernels = list(compiled())
    modules = {CONTRACT_MODULES.get(op, op) for op in CONTRACT}
    assert {k["kernel"].split(":")[0] for k in kernels} == {
        *modules,
        "random",
        "penalty",
        "glow_step",
    }
    assert {k["kernel"] for k in kernels if k["sm"] == 80} == {
        k["kernel"] for k in kernels if k["sm"] == 90
    }
    for k in kernels:
        # Another version of Triton may spill a few bytes where this one spills none.
        assert k["STACK"] + k["LOCAL"] <= 16, k
        module, kernel = k["kernel"].split(":")
        # A product's sums live in registers: there a multiprocessor has one block. Norms keep many numbers, and have
        # three blocks at least; of Triton 3.6, which gives one of them 225 registers, two.
        products = (
            "nearest_code:",
            "mmd:",
            "edge_conv:weight",
            "glow_step:mix",
            "glow_step:unmix",
            "conv_transpose_act:",
        )
        norms = 232 if version("triton").startswith("3.6.") else 168
        most = (
            255 if k["kernel"].startswith(products) else norms if module == "norm_passes" else 128
        )
        assert k["REG"] <= most, k
        # Of a norm's tile of float64 a thread has one number.
        alone = module == "norm_passes" and "float64" in k["label"]
        if kernel in PASSES and "odd" not in k["label"] and not alone:
            assert k["vectors"] >= 2, k
