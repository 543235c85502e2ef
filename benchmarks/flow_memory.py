"""The memory table of docs/flows.md: `python benchmarks/flow_memory.py`.

By how much a step (forward and backward) of Glow raises the peak of a process over what it has with its parameters and
their gradients.
"""

import os
import resource
import subprocess
import sys

import torch

import pyfastgan as pf

STEPS = (8, 16, 32)


def peak():
    """MiB, the most that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(steps, recompute):
    torch.manual_seed(0)
    images = torch.rand(64, 3, 32, 32) * 2 - 1
    model = pf.flow.Glow((3, 32, 32), steps=steps, scales=3, width=64, recompute=recompute)
    model.init(images[:1])
    (-model(images[:1]).mean()).backward()
    before = peak()
    (-model(images).mean()).backward()
    count = sum(p.numel() for p in model.parameters())
    print(f"{peak() - before:.0f} {count * 8 / 2**20:.0f}")


def memory():
    # Freed memory goes back at once, so that the peak is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    print("| steps a scale | stored | recomputed | parameters and gradients |\n|--:|--:|--:|--:|")
    for steps in STEPS:
        found = []
        for recompute in ("0", "1"):
            command = [sys.executable, __file__, "one", str(steps), recompute]
            text = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            found.append(text.stdout.split())
        (stored, size), (again, _) = found
        print(f"| {steps} | {stored} MiB | {again} MiB | {size} MiB |", flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["table"]
    if what == "one":
        one(int(rest[0]), rest[1] == "1")
    else:
        memory()
