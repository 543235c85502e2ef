"""The tables of docs/flows.md: `python benchmarks/flow_tables.py round-trips`, and `... memory`.

round-trips: the largest |x - f^-1(f(x))| over 4,096 points of moons, for flows over the plane of 1 to 32 couplings, as
they are initialised and after 300 steps on moons, with weights and points in each dtype.

memory: by how much a step (forward and backward) of Glow raises the peak of a process over what it has with its
parameters and their gradients.
"""

import copy
import os
import resource
import subprocess
import sys

import torch

import pyfastgan as pf

DEPTHS = (1, 2, 4, 8, 16, 32)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MODELS = {
    "RealNVP": lambda depth: pf.flow.RealNVP(2, layers=depth),
    "NSF": lambda depth: pf.flow.NSF(2, layers=depth),
}
STEPS = (8, 16, 32)


@torch.no_grad()
def error(model, x, dtype):
    model = copy.deepcopy(model).to(dtype)
    x = x.to(dtype)
    z, _ = model.transform(x)
    return (model.transform.inverse(z)[0] - x).abs().max().item()


def trained(model, points):
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for step in range(300):
        batch = points[step * 256 : (step + 1) * 256]
        optimizer.zero_grad()
        nll = -model(batch).mean()
        nll.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return nll.item()


def round_trips():
    points = pf.data.load("moons").tensors[0]
    x = pf.data.load("moons", count=4096, seed=1).tensors[0].double()
    head = " | ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    print(f"| model | couplings | state | {head} |\n|---|--:|---|{'--:|' * len(DTYPES)}")
    for name, make in MODELS.items():
        for depth in DEPTHS:
            torch.manual_seed(0)
            model = make(depth)
            model.init(points[:512])
            for state in ("initial", "trained"):
                if state == "trained":
                    trained(model, points)
                row = " | ".join(f"{error(model, x, dtype):.1e}" for dtype in DTYPES)
                print(f"| {name} | {depth} | {state} | {row} |", flush=True)


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
    what, *rest = sys.argv[1:] or ["help"]
    if what == "one":
        one(int(rest[0]), rest[1] == "1")
    elif what == "round-trips":
        round_trips()
    elif what == "memory":
        memory()
    else:
        sys.exit(__doc__)
