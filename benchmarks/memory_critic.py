"""Peak memory of training steps: a critic's under R1, and a DCGAN generator's.

    python benchmarks/memory_critic.py [--json FILE]

The bytes that torch's allocator has handed out at most at one time during a step, beyond what it had
before (weights, gradients and inputs); eager is autograd as the field writes it. A number of bytes
is the same on every run and on any number of threads.
"""

import argparse
import json
from pathlib import Path

import torch
from bench_critic_step import critic, data, eager_loss, laid
from bench_dcgan import TUTORIAL, discriminator, generator
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pyfastgan.gan import GAN, critic_step


def peak_bytes(step):
    """The most bytes in use during a step, over those at its start."""
    for _ in range(2):
        step()  # gradients are there, plans are made
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def critic_steps(loss, penalty, layout, norm=None):
    """A critic's step of 32 images of 64 pixels."""
    net = laid(critic(64, norm=norm), layout)
    real, fake = data(32, 64, layout)

    def ours():
        critic_step(net, real, fake, loss=loss, penalty=penalty)

    def eager():
        eager_loss(net, real, fake, loss, penalty).backward()

    return {"ours": ours, "eager": eager}


def generator_steps():
    """The generator's turn in the DCGAN of PyTorch's tutorial, 64 images of 64 pixels; the critic is
    frozen on our side, as the trainer has it, and not on eager's, as the tutorial has it."""
    system = GAN(TUTORIAL)
    made, judge = system.networks["generator"], system.networks["discriminator"]
    theirs, other = generator(TUTORIAL), discriminator(TUTORIAL)
    frozen = discriminator(TUTORIAL).requires_grad_(False)
    z = torch.randn(TUTORIAL.batch_size, TUTORIAL.latent_dim)

    def ours():
        judge.requires_grad_(False)
        nn.functional.softplus(-judge(made(z)).view(-1)).mean().backward()
        judge.requires_grad_(True)

    def eager(judge):
        scores = judge(theirs(z[:, :, None, None])).view(-1)
        nn.functional.binary_cross_entropy(scores, torch.ones_like(scores)).backward()

    return {"ours": ours, "eager": lambda: eager(other), "eager, frozen": lambda: eager(frozen)}


ROWS = {
    "critic step, non-saturating, r1": lambda: critic_steps("non-saturating", "r1", "contiguous"),
    "critic step, non-saturating, r1, channels last": lambda: critic_steps(
        "non-saturating", "r1", "channels last"
    ),
    "critic step, relativistic, r1r2": lambda: critic_steps("relativistic", "r1r2", "contiguous"),
    "critic step, wgan, wgan-gp": lambda: critic_steps("wgan", "wgan-gp", "contiguous"),
    "DCGAN generator step": generator_steps,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    rows = []
    for name, make in ROWS.items():
        peaks = {side: peak_bytes(step) for side, step in make().items()}
        rows.append({"name": name, "peak_bytes": peaks})
        text = ", ".join(f"{side} {bytes / 2**20:.1f} MiB" for side, bytes in peaks.items())
        print(f"{name}: {text}; ours / eager {peaks['ours'] / peaks['eager']:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
