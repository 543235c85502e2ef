"""How programs share out (samples, elements) tensors: a tile holds short samples, or goes along a part of a long one.

What is summed over a sample is kept for each part, and the parts are added in a fixed order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .bias_act import FLOAT64_SHARE, PROGRAMS, WIDE_FROM

TILE = 1024  # elements, for 128 threads


class Rows(NamedTuple):
    """The samples and elements, the parts of a sample, the tiles of a part, and what is compiled for."""

    rows: int
    columns: int
    parts: int
    steps: int
    wide: bool
    tile_rows: int
    tile_columns: int

    @property
    def grid(self) -> tuple[int]:
        return (triton.cdiv(self.rows, self.tile_rows) * self.parts,)


def plan_rows(x: Tensor) -> Rows:
    """For an x that is not empty. A tile's width is a multiple of 4."""
    tile = TILE // (FLOAT64_SHARE if x.dtype == torch.float64 else 1)
    rows, columns = x.size(0), math.prod(x.shape[1:])
    width = max(4, min(triton.next_power_of_2(columns), tile))
    height = max(1, min(triton.next_power_of_2(rows), tile // width))
    along, across = triton.cdiv(columns, width), triton.cdiv(rows, height)
    steps = triton.cdiv(along, min(along, triton.cdiv(PROGRAMS, across)))
    wide = x.numel() >= WIDE_FROM
    return Rows(rows, columns, triton.cdiv(along, steps), steps, wide, height, width)


def new_sums(x: Tensor, plan: Rows) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty((plan.rows, plan.parts), dtype=dtype, device=x.device)


def add_parts(sums: Tensor) -> Tensor:
    return sums.sum(1) if sums.size(1) > 1 else sums.reshape(-1)


def like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def zero_sums(x: Tensor) -> Tensor:
    """Of samples without elements."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.zeros(x.size(0), dtype=dtype, device=x.device)
