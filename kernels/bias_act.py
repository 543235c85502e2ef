"""bias_act, its backward and the backward of that: one pass each, and a short one over a bias gradient's partial sums.

A tensor is (outer, channels, inner) in memory, read as a matrix. With a long inner extent its rows are (outer,
channels) and the bias is one number a row; otherwise they are outer, and the bias of column j is that of channel
j // inner. A program sums its tiles over the rows or the columns, and a second kernel adds the sums of a channel, both
in a fixed order: no atomics, the same bits every time.

Floor, n elements of s bytes: forward 2 n s, backward 3 n s, backward of the backward 5 n s over the copy bandwidth.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import dense, dense_like, outer_channels_inner
from .activation import ACTIVATIONS, LEAKY_RELU, activate, activate_curvature, activate_slope
from .elementary import float_from_bits, to_storage

# Elements of a tile for 128 threads: fewer where a program handles three to five tensors, and for float64, whose
# formulas need many registers.
TILES = {"forward": 2048, "derivative": 1024}
FLOAT64_SHARE = 4
TILE_ROWS = 16  # at most, of a tile whose columns have their own channels
SUM_TILE = (128, 16)
LONG_ROW = 256  # the inner extent from which a row has one channel
PROGRAMS = 2048  # that the tiles of a reduction are spread over: several for each multiprocessor
WIDE_FROM = 2**31 - 2**16  # elements, from which on offsets need 64 bits


@triton.jit
def _bias_of(
    pointer, row, column, rows, columns, channels, inner, BY_ROW: tl.constexpr, dtype: tl.constexpr
):
    """A channel's number for each row, or for each column."""
    if BY_ROW:
        value = tl.load(pointer + row % channels, mask=row < rows, other=0.0)
    else:
        value = tl.load(pointer + column // inner, mask=column < columns, other=0.0)
    return value.to(dtype)


# Recompiled for no other slope, gain, bound or number of steps.
_numbers = triton.jit(do_not_specialize=("slope", "gain", "bound", "steps"))


@_numbers
def forward_kernel(
    x,
    bias,
    y,
    mask,
    rows,
    columns,
    channels,
    inner,
    slope: tl.int64,
    gain: tl.int64,
    bound: tl.int64,
    ACT: tl.constexpr,
    BY_ROW: tl.constexpr,
    CLAMPED: tl.constexpr,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    tiles = tl.cdiv(columns, C)
    program = tl.program_id(0)
    row = (program // tiles).to(index) * R + tl.arange(0, R)[:, None]
    column = (program % tiles).to(index) * C + tl.arange(0, C)[None, :]
    inside = (row < rows) & (column < columns)
    at = row * columns + column
    v = tl.load(x + at, mask=inside, other=0.0).to(dtype)
    if bias is not None:
        v += _bias_of(bias, row, column, rows, columns, channels, inner, BY_ROW, dtype)
    if mask is not None:
        # A row begins with a byte of its own, or there is one row.
        positive = tl.reshape((v > 0.0) & inside, (R, C // 8, 8)).to(tl.int32)
        bytes = tl.sum(positive << tl.arange(0, 8)[None, None, :], 2)
        byte = (program % tiles).to(index) * (C // 8) + tl.arange(0, C // 8)[None, :]
        held = (row < rows) & (byte * 8 < columns)
        tl.store(mask + row * (columns // 8) + byte, bytes.to(tl.uint8), mask=held)
    v = activate(v, float_from_bits(slope, dtype), ACT) * float_from_bits(gain, dtype)
    if CLAMPED:
        limit = float_from_bits(bound, dtype)
        v = tl.where(v > limit, limit, v)
        v = tl.where(v < -limit, -limit, v)
    tl.store(y + at, to_storage(v, storage), mask=inside)


@_numbers
def derivative_kernel(
    v,
    shift,
    dy,
    kept,
    bias,
    first,
    second,
    sums,
    rows,
    columns,
    channels,
    inner,
    steps,
    slope: tl.int64,
    gain: tl.int64,
    bound: tl.int64,
    ACT: tl.constexpr,
    BY_ROW: tl.constexpr,
    CLAMPED: tl.constexpr,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """first = (v + shift) f'(x); with dy also second = (v + shift) dy f''(x). `sums` gets the last of them summed.

    A program takes `steps` tiles one after another, along the axis that is summed.
    """
    storage: tl.constexpr = v.dtype.element_ty
    masked: tl.constexpr = kept.dtype.element_ty == tl.uint8
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    program = tl.program_id(0)
    if BY_ROW:
        groups = tl.cdiv(tl.cdiv(columns, C), steps)
        tile_row, tile_column = program // groups, program % groups * steps
    else:
        tiles = tl.cdiv(columns, C)
        tile_row, tile_column = program // tiles * steps, program % tiles
    row = tile_row.to(index) * R + tl.arange(0, R)[:, None]
    column = tile_column.to(index) * C + tl.arange(0, C)[None, :]
    slope_value, gain_value = float_from_bits(slope, dtype), float_from_bits(gain, dtype)
    limit = float_from_bits(bound, dtype)
    if shift is not None:
        extra = _bias_of(shift, row, column, rows, columns, channels, inner, BY_ROW, dtype)
    if bias is not None:
        added = _bias_of(bias, row, column, rows, columns, channels, inner, BY_ROW, dtype)
    total = tl.zeros((R, C), dtype)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        scaled = tl.load(v + at, mask=inside, other=0.0).to(dtype)
        if masked:
            byte = tl.load(kept + at // 8, mask=inside, other=0).to(tl.int32)
            bit = (byte >> (at % 8).to(tl.int32)) & 1
            x = tl.where(bit != 0, 1.0, -1.0).to(dtype)
        else:
            x = tl.load(kept + at, mask=inside, other=0.0).to(dtype)
        if shift is not None:
            scaled += extra
        if bias is not None:
            x += added
        scaled *= gain_value
        if CLAMPED:
            # Of the piecewise-linear ones the output is kept.
            output = x if ACT <= LEAKY_RELU else activate(x, slope_value, ACT) * gain_value
            scaled = tl.where(tl.abs(output) >= limit, 0.0, scaled)
        if ACT <= LEAKY_RELU and not masked:
            x = tl.where(gain_value < 0.0, -x, x)
        result = scaled * activate_slope(x, slope_value, ACT)
        tl.store(first + at, to_storage(result, storage), mask=inside)
        if dy is not None:
            scaled *= tl.load(dy + at, mask=inside, other=0.0).to(dtype)
            result = scaled * activate_curvature(x, ACT)
            tl.store(second + at, to_storage(result, storage), mask=inside)
        if sums is not None:
            total += tl.where(inside, result, 0.0)
        if BY_ROW:
            column += C
        else:
            row += R
    if sums is not None:
        if BY_ROW:
            place = row * groups + program % groups
            tl.store(sums + place, tl.sum(total, 1, keep_dims=True), mask=row < rows)
        else:
            place = (program // tiles).to(index) * columns + column
            tl.store(sums + place, tl.sum(total, 0, keep_dims=True), mask=column < columns)


@triton.jit
def sum_kernel(sums, out, outer, channels, inner, R: tl.constexpr, C: tl.constexpr):
    """out[c] is the sum of sums[:, c, :]."""
    channel = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    total = tl.zeros((R, C), sums.dtype.element_ty)
    for start in range(0, outer * inner, R):
        k = start + tl.arange(0, R)[:, None]
        place = (k // inner).to(tl.int64) * channels * inner + channel * inner + k % inner
        total += tl.load(sums + place, mask=(k < outer * inner) & (channel < channels), other=0.0)
    result = to_storage(tl.sum(total, 0, keep_dims=True), out.dtype.element_ty)
    tl.store(out + channel, result, mask=channel < channels)


class _Plan(NamedTuple):
    """A tensor as a matrix, and its tiles."""

    rows: int
    columns: int
    channels: int
    inner: int
    by_row: bool
    wide: bool
    tile_rows: int
    tile_columns: int

    @property
    def tiles(self) -> tuple[int, int]:
        return triton.cdiv(self.rows, self.tile_rows), triton.cdiv(self.columns, self.tile_columns)


def _plan(x: Tensor, channelwise: bool, kernel: str) -> _Plan:
    tile = TILES[kernel] // (FLOAT64_SHARE if x.dtype == torch.float64 else 1)
    outer, channels, inner = outer_channels_inner(x) if channelwise else (1, 1, x.numel())
    by_row = channelwise and inner >= LONG_ROW
    rows, columns = (outer * channels, inner) if by_row else (outer, channels * inner)
    if by_row:
        width = min(triton.next_power_of_2(columns), tile // 2)
        height = min(triton.next_power_of_2(rows), tile // width)
    else:
        height = min(triton.next_power_of_2(rows), TILE_ROWS)
        # A byte of a mask at least.
        width = max(8, min(triton.next_power_of_2(columns), tile // height))
    return _Plan(rows, columns, channels, inner, by_row, x.numel() >= WIDE_FROM, height, width)


def float64_bits(value: float) -> int:
    """What `float_from_bits` takes."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _settings(
    act: str, slope: float, gain: float, clamp: float | None, dtype: torch.dtype
) -> tuple[list[int], int]:
    """The numbers as their bits, and the activation's. The bound is as the storage type has it, as a kept output is."""
    bound = 0.0 if clamp is None else torch.tensor(clamp, dtype=dtype).item()
    return [float64_bits(slope), float64_bits(gain), float64_bits(bound)], ACTIVATIONS.index(act)


def bias_act(
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_mask: bool,
) -> tuple[Tensor, Tensor]:
    """y, of x's layout if that is dense, else contiguous; and a mask, empty unless it is wanted.

    Bit k % 8 of the mask's byte k // 8 says whether x + bias is above 0 at element k in memory. A matrix of several
    rows must then have a multiple of 8 columns.
    """
    x, bias = dense(x), None if bias is None else bias.contiguous()
    y = torch.empty_like(x)
    # Whole words of 64 bits, and one that a reader may read past the end, as all backends make it.
    mask = x.new_empty((x.numel() + 63) // 64 * 8 + 8 if want_mask else 0, dtype=torch.uint8)
    if x.numel() == 0:
        return y, mask
    plan = _plan(x, bias is not None, "forward")
    numbers, number = _settings(act, slope, gain, clamp, x.dtype)
    tiles = plan.tiles
    with torch.cuda.device_of(x):
        forward_kernel[(tiles[0] * tiles[1],)](
            x, bias, y, mask if want_mask else None, *plan[:4], *numbers, number,
            plan.by_row, clamp is not None, *plan[5:]
        )  # fmt: skip
    return y, mask


def _derivatives(
    v: Tensor,
    shift: Tensor | None,
    dy: Tensor | None,
    kept: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """v, dy and kept lie in memory alike, and densely; or kept is a mask of v's elements in memory."""
    shift, bias = (None if t is None else t.contiguous() for t in (shift, bias))
    first, second = torch.empty_like(v), None if dy is None else torch.empty_like(v)
    out = v.new_empty(v.size(1) if want_bias else 0)
    if v.numel() == 0:
        return first, second, out.zero_()
    plan = _plan(v, want_bias or bias is not None or shift is not None, "derivative")
    numbers, number = _settings(act, slope, gain, clamp, v.dtype)
    # How many tiles a program takes, and so how many partial sums a channel has.
    along, across = reversed(plan.tiles) if plan.by_row else plan.tiles
    steps = triton.cdiv(along, min(along, triton.cdiv(PROGRAMS, across))) if want_bias else 1
    groups = triton.cdiv(along, steps)
    sums = None
    if want_bias:
        dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
        lines = plan.rows if plan.by_row else plan.columns
        sums = torch.empty(groups * lines, dtype=dtype, device=v.device)
    with torch.cuda.device_of(v):
        derivative_kernel[(groups * across,)](
            v, shift, dy, kept, bias, first, second, sums, *plan[:4], steps, *numbers, number,
            plan.by_row, clamp is not None, *plan[5:]
        )  # fmt: skip
        if want_bias:
            outer = plan.rows // plan.channels if plan.by_row else groups
            inner = groups if plan.by_row else plan.inner
            grid = (triton.cdiv(plan.channels, SUM_TILE[1]),)
            sum_kernel[grid](sums, out, outer, plan.channels, inner, *SUM_TILE)
    return first, second, out


def bias_act_backward(
    dy: Tensor,
    shift: Tensor | None,
    at: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    channels_last: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor]:
    """dx and the bias gradient. `at` is y or a mask for linear, relu and leaky_relu, else x; `shift` is added to dy.

    `channels_last` is the order that a mask was made in.
    """
    if at.dtype != torch.uint8:
        at = dense(at)
        dy = dense_like(dy, at)
    elif channels_last:
        form = torch.channels_last if dy.dim() == 4 else torch.channels_last_3d
        dy = dy.contiguous(memory_format=form)
    else:
        dy = dy.contiguous()
    dx, _, dbias = _derivatives(dy, shift, None, at, bias, act, slope, gain, clamp, want_bias)
    return dx, dbias


def bias_act_backward_backward(
    ddx: Tensor,
    shift: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    gain: float,
    clamp: float | None,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to dy, x and the bias, of a smooth activation; `shift` is added to ddx."""
    x = dense(x)
    ddx, dy = dense_like(ddx, x), dense_like(dy, x)
    grad_dy, grad_x, grad_bias = _derivatives(
        ddx, shift, dy, x, bias, act, slope, gain, clamp, want_bias
    )
    assert grad_x is not None
    return grad_dy, grad_x, grad_bias
