"""random_words, random_uniform, random_normal: the calls that the contract tests make, those that they refuse, and the
rows of the benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from ._registry import BadCall, Row, Sample

# Shapes for each path of the kernels: blocks all in one sample, an odd end, samples shorter than a
# vector of blocks, shorter than a block, more than one piece of work, nothing at all; seeds of a
# batch and of each sample.
_SHAPES: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
    ("images", (4, 3, 16, 16), {"seed": 1234}),
    ("odd sizes", (5, 7, 3), {"seed": -1, "stream": 2**32 - 1, "sample_offset": 2**32 - 5}),
    ("points", (1000, 2), {"seed": 2**64 - 1, "stream": 3}),
    ("one number each", (33, 1), {"seed": 5}),
    ("one sample", (10007,), {"seed": 2**40 + 17}),
    ("scalar", (), {"seed": 8}),
    ("empty", (0, 4), {"seed": 8}),
    ("empty samples", (4, 0), {"seed": 8}),
    ("seed a sample", (6, 37), {"seed": torch.tensor([1, 2, 3, -(2**63), 2**63 - 1, 1])}),
    ("long, a seed a sample", (3, 301), {"seed": torch.tensor([4, -5, 6])}),
    ("short, whole blocks", (37, 12), {"seed": 7, "sample_offset": 2**32 - 37}),
    ("large", (3, 70001), {"seed": 99, "sample_offset": 12}),
)

_BAD_COUNTERS: tuple[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str], ...] = (
    ("negative size", ((2, -1),), {"seed": 1}, ValueError, "shape must not have negative sizes"),
    ("shape is a number", (4,), {"seed": 1}, TypeError, "shape must be a sequence of ints"),
    ("seed out of range", ((2, 3),), {"seed": 2**64}, ValueError, "seed must lie in"),
    ("seed is a float", ((2, 3),), {"seed": 1.5}, TypeError, "seed must be an int64 tensor or an int"),
    ("int32 seeds", ((2, 3),), {"seed": torch.zeros(2, dtype=torch.int32)}, TypeError, "int64"),
    ("too few seeds", ((2, 3),), {"seed": torch.zeros(3, dtype=torch.int64)}, ValueError, "2 samples"),
    ("stream too large", ((2, 3),), {"seed": 1, "stream": 2**32}, ValueError, "stream must lie in"),
    ("offset too large", ((2, 3),), {"seed": 1, "sample_offset": 2**32 - 1}, ValueError, "sample_offset"),
    ("seed and generator", ((2, 3),), {"seed": 1, "generator": torch.Generator()}, ValueError, "generator"),
)  # fmt: skip


def samples(typed: bool) -> tuple[Sample, ...]:
    return tuple(
        Sample(label, (shape,), dict(kwargs), takes_dtype=typed) for label, shape, kwargs in _SHAPES
    )


def bad_calls(typed: bool) -> tuple[BadCall, ...]:
    bad = _BAD_COUNTERS
    if typed:
        bad += (
            ("int dtype", ((2, 3),), {"seed": 1, "dtype": torch.int32}, TypeError, "dtype must be"),
        )
    return tuple(BadCall(*call) for call in bad)


_SIZES = (("200 thousand", 200_000), ("1 million", 1_000_000), ("4 million", 4_000_000))


def rows(name: str, eager: Any, ours: Any, item: int) -> Any:
    def measured() -> list[Row]:
        return [
            Row(
                name,
                label,
                lambda size=size: {  # type: ignore[misc]
                    "ours": lambda: ours((size,)),
                    "eager": lambda: eager(size),
                },
                bytes=size * item,
            )
            for label, size in _SIZES
        ]

    return measured
