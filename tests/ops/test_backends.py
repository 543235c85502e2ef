"""The choice of a backend, the fallback that says so, the instruction sets, and the bindings under
bad arguments."""

import os
import random
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfastgan as pf
from pyfastgan.ops import _backends, _registry

PURE = os.environ.get("PYFASTGAN_TEST_PURE") == "1"


def python(code, **environment):
    """Runs code in a fresh interpreter, away from the source tree."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_use_backend_sets_and_restores():
    assert _backends.choice.name == "auto"
    with pf.use_backend("reference"):
        assert _backends.choice.name == "reference"
        with pf.use_backend("auto"):
            assert _backends.choice.name == "auto"
        assert _backends.choice.name == "reference"
    assert _backends.choice.name == "auto"
    pf.use_backend("reference")
    assert _backends.choice.name == "reference"
    pf.use_backend("auto")


def test_use_backend_restores_after_an_error():
    with pytest.raises(ZeroDivisionError), pf.use_backend("reference"):
        _ = 1 / 0
    assert _backends.choice.name == "auto"


def test_unknown_and_unavailable_backends_say_why():
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*, got 'gpu'"):
        pf.use_backend("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(
            pf.BackendError, match=r"'cuda' is not available: (torch sees no|.*not built)"
        ):
            pf.use_backend("cuda")
    assert _backends.choice.name == "auto"


def test_the_chosen_backend_is_the_one_that_runs(monkeypatch):
    kernel = _registry.ops()["bias_act"].kernels[0]
    ran = []
    for name in ("reference", *(() if PURE else ("cpu",))):
        inner = kernel._run[name]
        monkeypatch.setitem(
            kernel._run, name, lambda *a, name=name, inner=inner: ran.append(name) or inner(*a)
        )
    with pf.use_backend("reference"):
        pf.ops.bias_act(torch.ones(300_000))
    pf.ops.bias_act(torch.ones(300_000))
    assert ran == ["reference", "reference" if PURE else "cpu"]


class Seen(TorchDispatchMode):
    """The names of the operators that are called within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_mode_sees_every_call():
    x = torch.ones(2, 3)
    with Seen() as seen:
        pf.ops.denoise_step(x, x, torch.ones(11))
        pf.ops.random_normal((2, 3), 1)
    assert {"pyfastgan.denoise_step.default", "pyfastgan.random_normal.default"} <= {*seen.names}


def test_the_dispatcher_gets_empty_tensors_for_what_nobody_asked_for():
    x, row = torch.ones(2, 3, dtype=torch.float16), torch.ones(11)
    arguments = (x, x, *(None,) * 6, row, None, None, None, None, 0, 0, False)
    y, x0 = torch.ops.pyfastgan.denoise_step(*arguments)
    assert (y.shape, x0.shape, x0.dtype) == ((2, 3), (0,), torch.float16)


def test_the_environment_sets_the_default():
    code = "import pyfastgan as pf; print(pf.info()['backend'])"
    assert python(code, PYFASTGAN_BACKEND="reference").stdout.strip() == "reference"
    bad = python(code, PYFASTGAN_BACKEND="fast")
    assert bad.returncode != 0
    assert "backend must be one of" in bad.stderr


def test_a_missing_module_is_said_once(monkeypatch):
    _backends.warn_fallback.cache_clear()
    monkeypatch.setattr(_registry.ops()["bias_act"].kernels[0], "_served", {})
    monkeypatch.setattr(_backends, "_load", lambda module: f"pyfastgan.{module} is not built")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            y = pf.ops.bias_act(torch.tensor([-1.0, 1.0]).repeat(150_000))
    torch.testing.assert_close(y[:2], torch.tensor([-0.2, 1.0]))
    said = [str(w.message) for w in caught if "falls back" in str(w.message)]
    assert len(said) == 1
    assert "not built" in said[0]
    _backends.warn_fallback.cache_clear()


def test_info_tells_who_serves_and_why_not():
    facts = pf.info()
    assert set(facts["ops"]) == set(_registry.ops())
    for kernels in facts["ops"].values():
        for state in kernels.values():
            assert state["cpu"]["backend"] == ("reference" if PURE else "cpu")
            assert all(state["cpu"]["others"].values())
    text = pf.info_text()
    for name in _registry.ops():
        assert f"\n{name}\n" in text
    assert "not triton:" in text


def test_import_needs_neither_the_training_extra_nor_triton():
    code = (
        "import sys, pyfastgan as pf, torch\n"
        "pf.ops.bias_act(torch.ones(2, 3))\n"
        "extras = ('triton', 'matplotlib', 'lightning_fabric', 'sklearn', 'jsonargparse')\n"
        "print([m for m in extras if m in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_keeps_the_contract(isa):
    """Each one in a process of its own. One that this build or this processor lacks must refuse by
    name."""
    code = (
        "import torch, pyfastgan as pf\n"
        "from pyfastgan import testing\n"
        "from pyfastgan.ops import _backends, _registry\n"
        "print(_backends.native('_cpu').isa)\n"
        "torch.set_num_threads(1)\n"
        "pf.use_backend('cpu')\n"
        "for op in _registry.ops().values():\n"
        "    for sample in op.samples:\n"
        "        for dtype in _registry.FLOATS:\n"
        "            testing.check_values(op, sample, dtype)\n"
    )
    result = python(code, PYFASTGAN_CPU_ISA=isa)
    if result.returncode:
        expected = (
            "is not built"
            if PURE
            else rf"PYFASTGAN_CPU_ISA={isa}: this (build holds|processor does not)"
        )
        assert isa != "portable" or PURE
        assert re.search(expected, result.stderr), result.stderr
    else:
        assert result.stdout.split() == [isa]


def test_an_unknown_instruction_set_is_refused():
    result = python("import pyfastgan._cpu", PYFASTGAN_CPU_ISA="sse9")
    assert result.returncode != 0
    assert ("this build holds" in result.stderr) != PURE


@pytest.mark.parametrize("module", [] if PURE else ["_cpu"])
def test_bindings_refuse_what_they_are_not_made_for(module):
    """Fuzzed arguments of the wrong number or kind raise TypeError or OverflowError and run
    nothing."""
    native = _backends.native(module)
    functions = [
        f for name in dir(native) if callable(f := getattr(native, name)) and name[0] != "_"
    ]
    for nothing in (native.kept, native.forget):  # which take nothing
        functions.remove(nothing)
    with pytest.raises(TypeError, match="takes"):
        native.kept(1)
    assert len(functions) >= 6
    draw = random.Random(0)
    wrong = ["text", 1.5j, [], object(), b"x", {}, (1,)]
    for function in functions:
        with pytest.raises(TypeError, match="takes"):
            function()
        for _ in range(40):
            arguments = [draw.choice(wrong) for _ in range(draw.randrange(0, 24))]
            with pytest.raises((TypeError, OverflowError)):
                function(*arguments)


@pytest.mark.parametrize("module", [] if PURE else ["_cpu"])
def test_kernels_refuse_unknown_numbers(module):
    native = _backends.native(module)
    with pytest.raises(RuntimeError, match="unknown element type"):
        native.bias_act(None, None, None, None, 9, 1, 1, 1, 0, 0.2, 1.0, 1.0, 1)
    with pytest.raises(RuntimeError, match="unknown activation"):
        native.bias_act(None, None, None, None, 0, 1, 1, 1, 99, 0.2, 1.0, 1.0, 1)
