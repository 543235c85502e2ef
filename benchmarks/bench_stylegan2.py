"""A step of StyleGAN2's training against the same networks on torch's own operations.

Eager has depthwise convolutions of torch where ours has `upfirdn2d`, bias and leaky ReLU one after the
other, and torch's random numbers; the networks, the loss and the optimizers are the same. A row each for an
ordinary step and for one with both regularisers, which differentiate twice.
"""

import math
from functools import cache
from itertools import count
from unittest.mock import patch

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from pyfastgan.gan import StyleGAN2, StyleGAN2Config, progressive, stylegan2, stylegan2_networks
from pyfastgan.nn import modulated_conv
from pyfastgan.ops._registry import Row, ops

SERVED_BY = [ops()[name] for name in ("upfirdn2d", "bias_act", "random_normal")]


@cache
def square(taps, channels):
    taps = torch.tensor(taps)
    return torch.outer(taps, taps).expand(channels, 1, 4, 4).contiguous()


def eager_upfirdn2d(x, taps, *, up=1, down=1, padding=(0, 0)):
    channels = x.size(1)
    weight = square(tuple(taps), channels)
    if up == 2:
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)
    return F.conv2d(F.pad(x, padding * 2), weight, stride=down, groups=channels)


def eager_bias_act(x, bias, act, *, slope, gain=1.0):
    y = x if bias is None else x + bias.reshape(-1, *[1] * (x.dim() - 2))
    return y if act == "linear" else F.leaky_relu(y, slope) * gain


def eager_random_normal(shape, *_, dtype=None, device=None, **__):
    return torch.randn(shape, dtype=dtype, device=device)


def eager(step):
    """The step with torch's own operations where ours were."""
    changed = [
        patch.object(stylegan2_networks, "upfirdn2d", eager_upfirdn2d),
        patch.object(modulated_conv, "upfirdn2d", eager_upfirdn2d),
        patch.object(stylegan2_networks, "bias_act", eager_bias_act),
        patch.object(progressive, "bias_act", eager_bias_act),
        patch.object(stylegan2_networks, "random_normal", eager_random_normal),
        patch.object(stylegan2, "random_normal", eager_random_normal),
    ]

    def run():
        for change in changed:
            change.start()
        try:
            return step()
        finally:
            for change in changed:
                change.stop()

    return run


def step_of(config, images, lazy):
    system = StyleGAN2(config)
    fabric = Fabric(accelerator="cpu", devices=1)
    for name, network in system.networks.items():
        system.networks[name] = fabric.setup_module(network)
        system.optimizers[name] = fabric.setup_optimizers(system.optimizers[name])
    interval = math.lcm(config.r1_interval, config.path_interval)
    steps = count(interval, interval) if lazy else count(1, interval)
    return lambda: system.training_step(fabric, (images,), next(steps))


@pytest.mark.parametrize("lazy", [False, True], ids=["ordinary", "regularised"])
@pytest.mark.parametrize(
    ("size", "channels", "width", "batch"), [(16, 1, 32, 32), (64, 3, 32, 8)], ids=["16", "64"]
)
def test_step(measure, benchmark, size, channels, width, batch, lazy):
    config = StyleGAN2Config(
        image_size=size, channels=channels, width=width, latent_dim=32, batch_size=batch
    )
    images = torch.rand(batch, channels, size, size) * 2 - 1
    row = Row(
        "StyleGAN2 training step" + (" with R1 and path lengths" if lazy else ""),
        f"{size} px, width {width}, batch {batch}",
        lambda: {
            "ours": step_of(config, images, lazy),
            "eager": eager(step_of(config, images, lazy)),
        },
        bytes=0,
    )
    result = measure(
        row, SERVED_BY, compile_eager=False
    )  # minutes, for what `eager` changes in each step
    benchmark.extra_info |= result["ratios"]
    benchmark.pedantic(step_of(config, images, lazy), rounds=3)
