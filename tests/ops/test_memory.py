"""New memory of large outputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyfastgan as pf

PURE = os.environ.get("PYFASTGAN_TEST_PURE") == "1"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage").exists() and not PURE


def asks_for_huge_pages(x):
    """Whether the middle of a tensor lies in memory that was asked for in huge pages."""
    middle, inside = x.data_ptr() + x.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the tensor's memory is not in the list")


@pytest.mark.skipif(not HUGE_PAGES, reason="compiled kernels ask for them, on Linux")
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
