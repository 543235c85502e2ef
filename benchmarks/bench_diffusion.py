"""A whole training step of a diffusion model: flow matching over the plane, and U-Nets on digits and on 32 pixels.

Both sides have the very same network. Of flow matching the other side is torchcfm's own loop: its conditional
flow matcher, the squared error, Adam as it comes. Of the U-Nets it is eager PyTorch as the field writes it: noise by
randn_like, coefficients gathered from tables and broadcast, group norm and SiLU as torch's layers, Adam as it
comes; `compile` is the same compiled. Ours is the step that `pyfastgan train` takes.

`share` in the extra figures is the part of our step that noise takes: times, noise and x_t, as the step makes
them.
"""

from dataclasses import replace
from itertools import count

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan import data
from pyfastgan.diffusion import DiffusionSystem, NoiseSchedule, preset
from pyfastgan.nn import NormAct
from pyfastgan.ops import diffuse
from pyfastgan.ops._registry import Row, ops


def config(name, **changes):
    return replace(preset(name, changes.get("data", "digits")), **changes)


POINTS = config("flow-matching", data="moons", dim=2)
DIGITS = config("ddpm", image_size=8, channels=1)
COLOUR = config("ddpm", image_size=32, channels=3, multipliers=(1, 2, 2))


def our_step(config, batch):
    system, fabric = DiffusionSystem(config), Fabric(accelerator="cpu", devices=1)
    system.networks["model"] = fabric.setup_module(system.networks["model"])
    system.optimizers["model"] = fabric.setup_optimizers(system.optimizers["model"])
    steps = count(1)
    return lambda: system.training_step(fabric, (batch,), next(steps))


def noise_of_a_step(config, batch):
    process, steps = DiffusionSystem(config).networks["model"].process, count(1)

    def make():
        step = 4 * next(steps)
        times = process.draw(len(batch), batch.device, 1, step, 0)
        return diffuse(batch, times.alpha, times.sigma, 1, stream=step + 1)

    return make


class Eager(nn.Module):
    """A NormAct as torch's own layers."""

    def __init__(self, layer):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(layer.groups, layer.channels), layer.act

    def forward(self, x):
        x = self.norm(x)
        return functional.silu(x) if self.act == "silu" else x


def eager_network(config):
    network = DiffusionSystem(config).networks["model"].network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NormAct):
                setattr(parent, name, Eager(child))
    return network


def eager_step(config, batch, prepare=lambda network: network):
    network = eager_network(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    called = prepare(network)
    schedule = NoiseSchedule.cosine(1000)
    alphas, sigmas = schedule.alpha.float(), schedule.sigma.float()

    def step():
        optimizer.zero_grad()
        t = torch.randint(0, 1000, (len(batch),))
        noise = torch.randn_like(batch)
        x = alphas[t][:, None, None, None] * batch + sigmas[t][:, None, None, None] * noise
        functional.mse_loss(called(x, t.float()), noise).backward()
        optimizer.step()

    return step


def torchcfm_step(config, batch):
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    network, matcher = eager_network(config), ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        t, x, velocity = matcher.sample_location_and_conditional_flow(
            torch.randn_like(batch), batch
        )
        torch.mean((network(x, t) - velocity) ** 2).backward()
        optimizer.step()

    return step


CASES = {
    "points": ("moons, mlp 4 x 256, batch 256", POINTS, 256),
    "digits": ("digits, 8 px, U-Net 32, batch 64", DIGITS, 64),
    "32 px": ("photos, 32 px, U-Net 32, batch 16", COLOUR, 16),
}


def batch_of(case):
    if case == "points":
        return data.load("moons").tensors[0][: CASES[case][2]]
    if case == "digits":
        return data.load("digits").tensors[0][: CASES[case][2]]
    return data.load("photos").stored[0][: CASES[case][2]] / 127.5 - 1


def contestants(case):
    _, settings, _ = CASES[case]
    batch = batch_of(case)
    ours = {"ours": our_step(settings, batch)}
    if case == "points":
        return ours | {"torchcfm": torchcfm_step(settings, batch)}
    return ours | {
        "eager": eager_step(settings, batch),
        "compile": eager_step(settings, batch, torch.compile),
    }


@pytest.mark.parametrize("case", CASES)
def test_step(measure, benchmark, case):
    shape, settings, _ = CASES[case]
    batch = batch_of(case)
    with FlopCounterMode(display=False) as counter:
        our_step(settings, batch)()
    row = Row(
        "diffusion training step",
        shape,
        lambda: contestants(case),
        bytes=0,
        flops=counter.get_total_flops(),
    )
    result = measure(row, [ops()["diffuse"], ops()["norm_act"]])
    benchmark.extra_info |= result["ratios"]
    benchmark.extra_info["share"] = share(case)
    benchmark(our_step(settings, batch))


def share(case, rounds=30):
    """The part of our step that noise takes, of medians."""
    from time import perf_counter

    _, settings, _ = CASES[case]
    batch, medians = batch_of(case), []
    for call in (noise_of_a_step(settings, batch), our_step(settings, batch)):
        times = []
        for _ in range(rounds):
            begin = perf_counter()
            call()
            times.append(perf_counter() - begin)
        medians.append(sorted(times)[rounds // 2])
    return medians[0] / medians[1]
