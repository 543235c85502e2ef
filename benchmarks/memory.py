"""The memory that one call needs beyond what was there before it, in bytes: `python benchmarks/memory.py NAME`.

What is read is the peak of the resident set that Linux keeps for a process, which is reset before the call. So it
counts what torch allocates, what kernels and libraries allocate behind torch's back, and pages, not requests. The C
library is told to ask the system for every piece of 64 KiB or more and to give it back at once, so that no
piece that is free from before hides a new one; that is slow, and the reason why times are measured elsewhere. Our
kernels forget the memory that they keep for outputs, so that what they keep during the call counts. Every contestant is
called twice before, once for what is set up and once for what that leaves behind.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from pyfastgan.ops import _backends
from pyfastgan.ops._registry import ops

THRESHOLD, TRIM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h


def needs(call, libc):
    for _ in range(2):
        call()
    gc.collect()
    if _backends.missing("cpu") is None:
        _backends.native("_cpu").forget()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return (peak - before) * 1024


def _status(name):
    for words in map(str.split, Path("/proc/self/status").read_text().splitlines()):
        if words[0] == f"{name}:":
            return int(words[1])
    raise OSError(f"/proc/self/status has no {name}")


def codes():
    """A training forward pass of vector quantisation."""
    from bench_vector_quantizer import contestants

    return contestants()


def of_registry(op, name, shape):
    """A row that is timed, too."""

    def make():
        found = {(row.name, row.shape): row for row in ops()[op].rows()}
        contestants = found[name, shape].make()
        contestants.pop("compile", None)
        return contestants

    return make


def glow():
    """A training step, with what the backward pass needs stored or computed again."""
    from bench_flow import eager_glow, our_glow

    images = torch.rand(16, 3, 32, 32) * 2 - 1
    return {
        "ours": our_glow(images, False),
        "ours, recomputed": our_glow(images, True),
        "eager": eager_glow(images),
    }


def deep_glow():
    """The same with four times as many steps."""
    from bench_flow import our_glow

    images = torch.rand(16, 3, 32, 32) * 2 - 1
    return {
        "ours": our_glow(images, False, steps=32),
        "ours, recomputed": our_glow(images, True, steps=32),
    }


def penalty():
    """A critic's step with R1."""
    from bench_critic_step import critic, eager_loss

    from pyfastgan.gan import critic_step

    net = critic(64)
    real, fake = torch.randn(2, 32, 3, 64, 64)

    def ours():
        net.zero_grad()
        critic_step(net, real, fake, loss="non-saturating", penalty="r1")

    def eager():
        net.zero_grad()
        eager_loss(net, real, fake, "non-saturating", "r1").backward()

    return {"ours": ours, "eager": eager}


def players():
    """A step of both players of the DCGAN tutorial's networks."""
    from bench_dcgan import TUTORIAL, images_for, our_step, tutorial_step

    images = images_for(TUTORIAL)
    return {"ours": our_step(TUTORIAL, images), "eager": tutorial_step(TUTORIAL, images)}


STEPS = {
    "VectorQuantizer training forward": ("8192 x 1024 x 64", codes),
    "critic step with R1": ("32,3,64,64", penalty),
    "DCGAN training step": ("the tutorial's networks, batch 64", players),
    "Glow training step": ("L=3, K=8, hidden 64, 32 px, batch 16", glow),
    "Glow training step, deep": ("L=3, K=32, hidden 64, 32 px, batch 16", deep_glow),
}
OPS = {
    "mmd": ("mmd fwd+bwd, one side", "4096 x 4096 x 64, 5 bandwidths"),
    "rational_quadratic_spline": ("rational_quadratic_spline fwd+bwd, K=8", "8192,64"),
    "discretized_mix_logistic": ("discretized_mix_logistic fwd+bwd, M=10", "16,3,32,32"),
    "norm_act": (
        "norm_act instance leaky_relu fwd+bwd+double bwd",
        "64,64,32,32 contiguous",
    ),
}
ROWS = {name: (shape, of_registry(op, name, shape)) for op, (name, shape) in OPS.items()} | STEPS


def main(name):
    libc = ctypes.CDLL(None)
    libc.mallopt(THRESHOLD, 1 << 16)
    libc.mallopt(TRIM, 0)
    torch.manual_seed(0)
    _, make = ROWS[name]
    return {who: needs(call, libc) for who, call in make().items()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
