"""The contract of `pyfastgan.testing` for every registered op, sample, dtype and backend.

PYFASTGAN_TEST_DEVICE chooses the device. PYFASTGAN_TEST_PURE=1 says that the compiled modules are
missing on purpose.
"""

import os
import pkgutil

import pytest
import torch

import pyfastgan
from pyfastgan import testing
from pyfastgan.ops._backends import missing
from pyfastgan.ops._registry import FLOATS, ops

DEVICE = os.environ.get("PYFASTGAN_TEST_DEVICE", "cpu")
PURE = os.environ.get("PYFASTGAN_TEST_PURE") == "1"
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}

CALLS = [
    pytest.param(op, backend, sample, id=f"{op.name}-{backend}-{sample.label}")
    for op in ops().values()
    for backend in testing.backends(op, DEVICE)
    for sample in op.samples
]


def test_the_compiled_kernels_are_what_is_tested():
    assert (missing("cpu") is None) == (not PURE)
    if DEVICE == "cpu" and not PURE:
        for op in ops().values():
            assert "cpu" in testing.backends(op), f"{op.name} has no CPU kernel"


def test_every_op_file_registers_an_op():
    files = {m.name for m in pkgutil.iter_modules(pyfastgan.ops.__path__) if m.name[0] != "_"}
    modules = {op.function.__module__.rsplit(".", 1)[-1] for op in ops().values()}
    assert files == modules
    for op in ops().values():
        assert getattr(pyfastgan.ops, op.name) is op.function
        assert op.samples
        assert op.bad_calls
        assert op.rows()


@pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)
@pytest.mark.parametrize("check", testing.PER_DTYPE, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("op", "backend", "sample"), CALLS)
def test_each_dtype(op, backend, sample, check, dtype):
    with pyfastgan.use_backend(backend):
        check(op, sample, dtype, DEVICE)


@pytest.mark.parametrize("check", testing.PER_SAMPLE, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("op", "backend", "sample"), CALLS)
def test_each_sample(op, backend, sample, check):
    with pyfastgan.use_backend(backend):
        check(op, sample, DEVICE)


@pytest.mark.parametrize(
    ("op", "call"),
    [
        pytest.param(op, call, id=f"{op.name}-{call.label}")
        for op in ops().values()
        for call in op.bad_calls
    ],
)
def test_bad_calls_are_refused(op, call):
    testing.check_bad_call(op, call)
