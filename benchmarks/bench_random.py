"""Random numbers against torch's, and how the time of normals grows with their number."""

import torch

from pyfastgan.ops import random_normal
from pyfastgan.ops._registry import Row, ops

OPS = ("random_words", "random_uniform", "random_normal")


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])


def test_normals_by_size(measure, elements, threads):
    contestants = {
        "ours": lambda: random_normal((elements,)),
        "eager": lambda: torch.randn(elements),
    }
    row = Row(
        "random_normal by size", f"{elements:,} elements", lambda: contestants, bytes=4 * elements
    )
    result = measure(row, [ops()["random_normal"]], threads=threads, compile_eager=False)
    result |= {"sweep": "random_normal", "elements": elements}
