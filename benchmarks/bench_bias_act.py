"""Bias and activation against the two torch operations, and how the time grows with the image."""

import torch
import torch.nn.functional as F

from pyfastgan.ops import bias_act
from pyfastgan.ops._registry import Row, ops

OPS = ("bias_act",)
CHANNELS = 50


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])


def test_forward_by_size(measure, elements, threads):
    pixels = elements // CHANNELS

    def make():
        x, bias = torch.randn(1, CHANNELS, pixels), torch.randn(CHANNELS)
        return {
            "ours": lambda: bias_act(x, bias),
            "eager": lambda: F.leaky_relu(x + bias.reshape(1, -1, 1), 0.2),
        }

    moved = 2 * 4 * CHANNELS * pixels
    row = Row("bias_act leaky_relu fwd by size", f"{elements:,} elements", make, bytes=moved)
    result = measure(row, [ops()["bias_act"]], threads=threads, compile_eager=False)
    result |= {"sweep": "bias_act leaky_relu fwd", "elements": elements}
