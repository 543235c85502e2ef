"""Norm and activation against torch's operations, and how the time grows with the image."""

import torch
import torch.nn.functional as F

from pyfastgan.ops import norm_act
from pyfastgan.ops._registry import Row, ops

OPS = ("norm_act",)
CHANNELS = 50


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])


def test_forward_by_size(measure, elements, threads):
    pixels = elements // CHANNELS

    def make():
        x, w, b = torch.randn(1, CHANNELS, pixels), torch.randn(CHANNELS), torch.randn(CHANNELS)
        return {
            "ours": lambda: norm_act(x, w, b),
            "eager": lambda: F.leaky_relu(F.batch_norm(x, None, None, w, b, training=True), 0.2),
        }

    moved = 2 * 4 * CHANNELS * pixels
    row = Row("norm_act batch leaky_relu fwd by size", f"{elements:,} elements", make, bytes=moved)
    result = measure(row, [ops()["norm_act"]], threads=threads, compile_eager=False)
    result |= {"sweep": "norm_act batch leaky_relu fwd", "elements": elements}
