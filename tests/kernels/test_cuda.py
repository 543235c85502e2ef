"""csrc/cuda without a GPU: every source compiles for every architecture, and runs on the CPU, thread by thread.

The emulated runs need a C++ compiler alone. Without nvcc no device code is compiled, which a warning says;
PYFASTGAN_NEED_GPU_TOOLS=1 makes it an error.
"""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pyfastgan as pf
from pyfastgan import testing
from pyfastgan.ops import _backends
from pyfastgan.ops._registry import FLOATS, ops

HERE = Path(__file__).parent
SOURCES = sorted((HERE.parents[1] / "csrc" / "cuda").glob("*.cu"))
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
WITH_CUDA = [op for op in ops().values() if all("cuda" in k.backends() for k in op.kernels)]
DEFINITIONS = ["-DPF_ISA=cuda", '-DPF_ARCHITECTURES="sm_75"']


class Value(ctypes.Union):
    _fields_ = (("p", ctypes.c_void_p), ("i", ctypes.c_int64), ("d", ctypes.c_double))


class Library:
    """A library of kernels with the calling convention of a compiled module."""

    def __init__(self, path):
        self.c = ctypes.CDLL(str(path))
        self.c.signature_of.restype = self.c.call.restype = ctypes.c_char_p

    def __getattr__(self, name):
        signature = self.c.signature_of(name.encode()).decode()

        def call(*args):
            assert len(args) == len(signature), f"{name} takes {len(signature)} arguments"
            values = (Value * len(args))()
            for value, kind, arg in zip(values, signature, args):
                setattr(value, kind, arg)
            problem = self.c.call(name.encode(), values)
            if problem is not None:
                raise RuntimeError(f"{name}: {problem.decode()}")

        return call

    def philox(self, counter, key):
        words = (ctypes.c_uint32 * 4)(*counter)
        self.c.philox(words, (ctypes.c_uint32 * 2)(*key))
        return tuple(words)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The CUDA sources as a C++ compiler sees them. Like a GPU, it fuses multiplications and additions where it can."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    assert compiler, "a C++ compiler is needed: put c++ on PATH or set CXX"
    target = tmp_path_factory.mktemp("emulated") / "kernels.so"
    sources = [*map(str, SOURCES), str(HERE / "exports.cpp")]
    options = [
        "-std=c++17",
        "-O1",
        "-march=native",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    command = [
        compiler,
        *options,
        f"-I{HERE / 'emulated'}",
        *DEFINITIONS,
        "-o",
        str(target),
        "-xc++",
    ]
    subprocess.run([*command, *sources], check=True)
    return Library(target)


@pytest.fixture
def as_cuda(emulated, monkeypatch):
    """The backend "cuda" with its Python side, over the emulated kernels and CPU tensors."""
    load = _backends._load
    monkeypatch.setattr(
        _backends, "_load", lambda name: emulated if name == "_cuda" else load(name)
    )
    monkeypatch.setattr(_backends, "_no_gpu", lambda: None)
    monkeypatch.setattr(_backends, "refuses_device", lambda *_: None)
    for kernel in (k for op in WITH_CUDA for k in op.kernels):
        monkeypatch.setattr(
            kernel, "_served", {}
        )  # what served before, and what serves in this disguise
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    with pf.use_backend("cuda"):
        yield emulated


CALLS = [
    pytest.param(op, sample, id=f"{op.name}-{sample.label}")
    for op in WITH_CUDA
    for sample in op.samples
]


def test_there_are_cuda_kernels():
    assert {path.stem for path in SOURCES} == {
        op.function.__module__.rsplit(".")[-1] for op in WITH_CUDA
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("op", "sample"), CALLS)
def test_the_contract_on_emulated_threads(as_cuda, op, sample, dtype):
    testing.check_values(op, sample, dtype)
    testing.check_same_bits(op, sample, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("channels", "shape"), [(3, (3, 20, 5, 7)), (1, (4, 15, 9)), (3, (300, 50))]
)
def test_drawn_images_are_those_of_torch(as_cuda, channels, shape, dtype):
    """But for a few whose logistic number or whose logits lie on an edge up to rounding."""
    params = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    planes = 10 if channels == 3 else 3
    kinds = params[:, shape[1] // planes :].unflatten(1, (channels, -1, shape[1] // planes))
    kinds[:, :, 0] *= 0.5
    kinds[:, :, 1] = kinds[:, :, 1] * 2 - 4
    params = params.to(dtype)
    for seed in (7, torch.arange(shape[0]) - 5):
        place = {"stream": 2**32 - 1, "sample_offset": 11}
        ours = pf.ops.sample_discretized_mix_logistic(params, channels, seed, **place)
        with pf.use_backend("reference"):
            exact = pf.ops.sample_discretized_mix_logistic(params, channels, seed, **place)
        assert ours.shape == exact.shape
        assert ours.dtype == dtype
        other = (ours != exact).double().mean()
        assert other <= (0 if dtype == torch.float64 else 2e-3), other
    spoiled = params.clone()
    spoiled[0] = float("nan")
    drawn = pf.ops.sample_discretized_mix_logistic(spoiled, channels, 7)
    assert drawn[0].isnan().all()
    assert not drawn[1:].isnan().any()


def test_known_answers(emulated, known_answers):
    for counter, key, words in known_answers:
        assert emulated.philox(counter, key) == words


def test_more_items_than_threads(as_cuda):
    # 1.12 million blocks of four words for 4096 x 256 threads.
    words = pf.ops.random_words((70_000, 61), 7)
    with pf.use_backend("reference"):
        assert torch.equal(words[-50:], pf.ops.random_words((50, 61), 7, sample_offset=69_950))
        assert torch.equal(words[:50], pf.ops.random_words((50, 61), 7))


@pytest.mark.parametrize("elements", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("shift", [0, 1])
def test_nothing_is_written_beside_the_output(emulated, elements, shift):
    """Also where the output does not start on a multiple of 16 bytes."""
    seed, samples = torch.tensor(5), 3
    memory = torch.full((samples * elements + 8,), -1.0)
    out = memory[4 + shift :][: samples * elements]
    arguments = (0, samples, elements, seed.data_ptr(), 0, 2, 9, None)
    emulated.random_uniform(out.data_ptr(), *arguments)
    expected = pf.ops.random_uniform((samples, elements), 5, stream=2, sample_offset=9)
    assert torch.equal(out.reshape(samples, elements), expected)
    assert (memory[: 4 + shift] == -1).all()
    assert (memory[4 + shift + out.numel() :] == -1).all()


def test_a_failed_launch_is_told_and_taken_back(emulated):
    out, seed = torch.zeros(4), torch.tensor(5)
    arguments = (out.data_ptr(), 0, 1, 4, seed.data_ptr(), 0, 0, 0, None)
    for number, text in (
        (1, r"random_normal: an emulated error \(cudaErrorEmulated\)"),
        (2, r"GPU 3 has architecture sm_52 .* holds code for sm_75, .*CUDAARCHS=52"),
    ):
        emulated.c.fail_next_launch(number)
        with pytest.raises(RuntimeError, match=text):
            emulated.random_normal(*arguments)
        assert emulated.c.pending_error() == 0
    with pytest.raises(RuntimeError, match="unknown element type"):
        emulated.random_normal(out.data_ptr(), 9, *arguments[2:])


def test_nvcc_is_found():
    if NVCC is None:
        assert os.environ.get("PYFASTGAN_NEED_GPU_TOOLS") != "1", (
            "nvcc is not on PATH, and CUDACXX is not set"
        )
        warnings.warn("nvcc is not on PATH: csrc/cuda is not compiled for GPUs here", stacklevel=1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A library of device code for every architecture, and what ptxas says of each kernel. None without nvcc."""
    if NVCC is None:
        return None
    target = tmp_path_factory.mktemp("compiled") / "kernels.so"
    options = [
        "-std=c++17", "-O3", "-shared", "--cudart=static", "--expt-relaxed-constexpr", "--Werror=all-warnings",
        "-Xptxas=-v,-warn-spills,-Werror", "-Xcompiler=-fPIC,-Wall,-Wextra", "--threads=0",
    ]  # fmt: skip
    for architecture in (75, 80, 90):
        options.append(f"--generate-code=arch=compute_{architecture},code=sm_{architecture}")
    options.append("--generate-code=arch=compute_90,code=compute_90")
    # The macro's quotes pass through one shell on nvcc's way to the host compiler.
    definitions = [d.replace('"', '\\"') for d in DEFINITIONS]
    sources = [*map(str, SOURCES), str(HERE / "exports.cpp")]
    command = [NVCC, *options, *definitions, "-o", str(target), *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(library=Library(target), report=done.stderr)


def test_device_code_does_not_spill(compiled):
    if compiled is None:
        return
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", compiled.report)
    assert len(spills) >= 3 * len(SOURCES)
    assert all(pair == ("0", "0") for pair in spills), compiled.report
    used = r"Compiling entry function '(\w+)'.*?Used (\d+) registers"
    for name, registers in re.findall(used, compiled.report, re.DOTALL):
        # float64 takes two registers a number.
        most = 128 if re.search("[a-z]Id", name) else 64
        assert int(registers) <= most, f"{name}: too few of a multiprocessor's threads would fit"


def test_device_code_loads_without_a_driver(compiled):
    if compiled is None:
        return
    out, seed = torch.zeros(4), torch.tensor(5)
    nothing = (out.data_ptr(), 0, 0, 4, seed.data_ptr(), 0, 0, 0, None)
    compiled.library.random_normal(*nothing)
    if not torch.cuda.is_available():
        one = (out.data_ptr(), 0, 1, 4, seed.data_ptr(), 0, 0, 0, None)
        with pytest.raises(RuntimeError, match=r"random_normal: .*\(cudaError"):
            compiled.library.random_normal(*one)
