"""What the machine is, and whether others disturb it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pyfastgan import __version__
from pyfastgan.bench.turns import steady, take_turns
from pyfastgan.ops import _backends

# The most that other programs may use of the processor, and the most that a fixed workload may
# vary: on a quiet machine its slow tenth lies 5 to 10% above its fastest run, beside another
# program on the same cores 200% and more.
BUSY_LIMIT = 0.15


SPREAD_LIMIT = 0.3


Result = dict[str, Any]


class NoisyMachine(RuntimeError):
    """The machine does other work, and what is measured on it would be wrong."""


def spread(times: list[float], fastest: float) -> float:
    """How far the slow tenth lies above the fastest, as a share of the fastest."""
    return sorted(times)[int(0.9 * len(times))] / fastest - 1


def busy_share() -> float | None:
    """The share of the processor that others use while this process sleeps; None if unknown."""

    def ticks() -> tuple[int, int]:
        text = Path("/proc/stat").read_text().splitlines()[0]
        counts = [int(word) for word in text.split()[1:9]]
        return sum(counts) - counts[3] - counts[4], sum(counts)  # idle and waiting for a disk

    try:
        before = ticks()
        time.sleep(1.0)
        busy, total = (b - a for a, b in zip(before, ticks()))
        return busy / total
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None


def noise() -> Result:
    """How busy others keep the machine, and how much a fixed workload on all threads varies."""
    busy = busy_share()
    times = take_turns({"steady": steady()}, 0.2, 1e-3)["steady"]
    return {"busy": busy, "spread": spread(times, min(times)), "fastest": min(times)}


def hardware() -> Result:
    """Processor, cores, threads and instruction set of the compiled kernels."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = names[0] if names else name
    isa = None if _backends.missing("cpu") else _backends.native("_cpu").isa
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "isa": isa}


def versions() -> Result:
    """Of Python, torch and pyfastgan, with the git revision if this is a checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A wheel may lie inside somebody else's repository.
    ours = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyfastgan": __version__,
        "revision": git("describe", "--always", "--dirty") if ours else None,
    }
