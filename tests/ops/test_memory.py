"""Memory of outputs: kept from call to call, and asked for in huge pages where it is large."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import pyfastgan as pf
from pyfastgan.ops import _backends
from pyfastgan.ops._common import fresh, fresh_like

PURE = os.environ.get("PYFASTGAN_TEST_PURE") == "1"
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage").exists()

compiled = pytest.mark.skipif(PURE, reason="the compiled kernels keep memory")
keeps = pytest.mark.skipif(
    PURE or SANITIZED, reason="compiled kernels keep memory, but not from a sanitizer"
)

MOST = 256 << 20


def kept():
    return _backends.native("_cpu").kept()


@compiled
@pytest.mark.parametrize("shape", [(1 << 16,), (300, 500), (3, 5, 100, 100), (2, 3, 20, 30, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_lies_as_told(shape, dtype):
    x = torch.zeros(shape, dtype=dtype)
    forms = {4: torch.channels_last, 5: torch.channels_last_3d}
    for like in [x, x.to(memory_format=forms[x.dim()])] if x.dim() in forms else [x]:
        y = fresh_like(like).copy_(like)
        assert (y.shape, y.stride(), y.dtype) == (like.shape, like.stride(), dtype)
        assert y.data_ptr() % 64 == 0


@compiled
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_other_types(dtype):
    y = fresh(torch.zeros(2), (1 << 18,), dtype)
    assert y.dtype == dtype
    assert y.fill_(7).sum(dtype=torch.int64).item() == 7 << 18


@keeps
def test_given_to_the_next_of_its_size_and_to_nobody_before():
    x = torch.zeros(3, 70_000)
    y = fresh_like(x)
    place, view = y.data_ptr(), y[1:]
    del y
    assert fresh_like(x).data_ptr() != place  # a view still has it
    before = kept()
    del view
    assert kept() >= before + x.nbytes
    small = fresh_like(x[:, :30_000])
    assert small.data_ptr() != place  # it would waste half of it
    assert fresh_like(x).data_ptr() == place


@keeps
def test_outputs_in_use_never_share_memory():
    """Nor with threads that come and go at once."""
    x = torch.zeros(40_000)

    def work(number):
        held = []
        for k in range(300):
            y = fresh_like(x)
            held.append((y.fill_(number * 1000 + k), number * 1000 + k))
            if k % 3 == 2:
                for y, value in held:
                    if not bool((y == value).all()):
                        wrong.append(value)
                held = held[-1:]

    wrong = []
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@keeps
def test_keeps_no_more_than_it_says():
    x = torch.empty(24 << 20, dtype=torch.uint8)
    held = [fresh_like(x) for _ in range(14)]
    del held
    assert 0 < kept() <= MOST
    huge = fresh(x, (MOST + (1 << 20),))
    before = kept()
    del huge
    assert kept() == before
    _backends.native("_cpu").forget()
    assert kept() == 0


@keeps
def test_a_forked_process_has_its_own():
    x = torch.ones(20_000, dtype=torch.float64)
    y = fresh_like(x).copy_(x)
    child = os.fork()
    if child == 0:
        z = fresh_like(x).fill_(2)
        y.fill_(3)
        os._exit(0 if bool((z == 2).all()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(y, x)


@compiled
def test_a_capsule_that_nobody_took_gives_its_memory_back():
    output = _backends.native("_cpu").output
    capsule = output((1 << 20,), (), 0x220)
    before = kept()
    del capsule
    assert SANITIZED or kept() >= before + (4 << 20)


@compiled
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (((3,), ()), TypeError),
        (([3], (), 0x220), TypeError),
        (((3, 4), (1,), 0x220), ValueError),
        (((-3,), (), 0x220), ValueError),
        (((2**40, 2**40), (), 0x220), ValueError),
        (((2**61,), (), 0x220), MemoryError),
        # A sanitizer ends the process there.
        pytest.param(((2**55,), (), 0x220), MemoryError, marks=keeps),
        (((3,), (), 0x221), ValueError),
        (((3,), (), -1), ValueError),
        (((3.0,), (), 0x220), TypeError),
        (((1,) * 17, (), 0x220), ValueError),
    ],
)
def test_a_wrong_request_is_refused(arguments, error):
    with pytest.raises(error):
        _backends.native("_cpu").output(*arguments)


def asks_for_huge_pages(x):
    """Whether the middle of a tensor lies in memory that was asked for in huge pages."""
    middle, inside = x.data_ptr() + x.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the tensor's memory is not in the list")


@pytest.mark.skipif(
    PURE or not HUGE_PAGES, reason="compiled kernels ask for them, where Linux has them"
)
def test_large_outputs_ask_for_huge_pages():
    """In a process of its own, since the heap of this one may hold memory that was asked for before."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_large_outputs():
    """Of more than glibc takes from a heap that is no larger."""
    size = 12 << 20
    x = torch.zeros(3, size // 3)
    calls = {
        "random_normal": lambda: pf.ops.random_normal(x.shape, 1),
        "bias_act": lambda: pf.ops.bias_act(x, None, "relu"),
        "norm_act": lambda: pf.ops.norm_act(x, norm="layer"),
    }
    for op, call in calls.items():
        assert not asks_for_huge_pages(torch.empty(size)), op
        with pf.use_backend("cpu"):
            assert asks_for_huge_pages(call()), op
        assert not asks_for_huge_pages(x), op


if __name__ == "__main__":
    check_large_outputs()
