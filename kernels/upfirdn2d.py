"""upfirdn2d: a thread an output, over the few taps that meet a pixel and not a zero between two; nothing is enlarged.

Images are (count, height, width, channels) in memory, with one channel where they are contiguous. A tile is lines of
outputs (sample, row) by columns (pixel, channel), so that neighbours in a warp are neighbours in memory. Of `up`
phases one meets pixels: a program takes each ceil(taps / up)-th tap by a select over the phases.

Floor, n inputs and m outputs of s bytes: (n + m) s over the copy bandwidth; each input is read several times, from a
cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import is_channels_last
from .bias_act import FLOAT64_SHARE, WIDE_FROM
from .elementary import to_storage

TILE = 1024  # elements, for 128 threads


@triton.jit
def _tap(phase, TAPS: tl.constexpr, m: tl.constexpr, UP: tl.constexpr, dtype: tl.constexpr):
    """taps[m UP + phase], 0 past the end."""
    weight = tl.zeros(phase.shape, dtype)
    for p in tl.static_range(UP):
        if m * UP + p < len(TAPS):
            weight = tl.where(phase == p, tl.full((1, 1), TAPS[m * UP + p], dtype), weight)
    return weight


# Compiled for each filter: it is the constant of a network.
@triton.jit
def filter_kernel(
    x, y, lines, height, width, channels, out_height, out_width, left, above,
    TAPS: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    columns = out_width * channels
    tiles = tl.cdiv(columns, C)
    line = (tl.program_id(0) // tiles).to(index) * R + tl.arange(0, R)[:, None]
    column = (tl.program_id(0) % tiles) * C + tl.arange(0, C)[None, :]
    inside = (line < lines) & (column < columns)
    # Where the first tap lies in the enlarged image, and the first one from there on that meets a pixel.
    row = (line % out_height).to(tl.int32) * DOWN - above
    pixel = column // channels * DOWN - left
    # C's remainder of a negative number is negative.
    row_phase, pixel_phase = (UP - row % UP) % UP, (UP - pixel % UP) % UP
    row, pixel = (row + row_phase) // UP, (pixel + pixel_phase) // UP
    first = line // out_height * height
    total = tl.zeros((R, C), dtype)
    for i in tl.static_range((len(TAPS) + UP - 1) // UP):
        along = tl.zeros((R, C), dtype)
        held = inside & (row + i >= 0) & (row + i < height)
        start = x + (first + row + i) * (width * channels) + column % channels
        for j in tl.static_range((len(TAPS) + UP - 1) // UP):
            meets = held & (pixel + j >= 0) & (pixel + j < width)
            v = tl.load(start + (pixel + j) * channels, mask=meets, other=0.0).to(dtype)
            along += v * _tap(pixel_phase, TAPS, j, UP, dtype)
        total += along * _tap(row_phase, TAPS, i, UP, dtype)
    tl.store(y + line * columns + column, to_storage(total, storage), mask=inside)


def upfirdn2d(x: Tensor, taps: Sequence[float], up: int, down: int, pads: Sequence[int]) -> Tensor:
    """y, channels-last where x is; the taps are those of a correlation, the last first."""
    last = is_channels_last(x) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    left, right, above, below = pads
    count, channels, height, width = x.shape
    out_height = (height * up + above + below - len(taps)) // down + 1
    out_width = (width * up + left + right - len(taps)) // down + 1
    shape = (count, channels, out_height, out_width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    if y.numel() == 0:
        return y
    if not last:
        count, channels = count * channels, 1
    lines, columns = count * out_height, out_width * channels
    tile = TILE // (FLOAT64_SHARE if x.dtype == torch.float64 else 1)
    c = min(triton.next_power_of_2(columns), tile)
    r = min(triton.next_power_of_2(lines), tile // c)
    grid = (triton.cdiv(lines, r) * triton.cdiv(columns, c),)
    wide = max(x.numel(), y.numel()) >= WIDE_FROM
    with torch.cuda.device_of(x):
        filter_kernel[grid](
            x, y, lines, height, width, channels, out_height, out_width, left, above,
            tuple(taps), up, down, wide, r, c
        )  # fmt: skip
    return y
