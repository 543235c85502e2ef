"""norm_act, its backward and the backward of that, by the formulas of pyfastgan/ops/norm_act.py.

Each is two passes over the tensors with a short kernel between them: the sums over what shares a mean; what follows
from these; the results, with the sums of each channel's gradients, which a fourth kernel adds up. Affine has no
statistics, and no first pass. Sums are kept in pieces that a program makes in a fixed order, and are added in
float64: no atomics, the same bits every time.

A tensor is a matrix, as in bias_act.py: its rows are (sample, channel) where they are long, and a program goes along
them; otherwise its columns are channels, or channels and space, and a program goes down. The sums of groups of short
contiguous rows are taken along rows (sample, group), and those of groups in channels-last memory go down the rows of
one sample.

Floor, n elements of s bytes: forward 3 n s, backward 5 n s, backward of the backward 8 n s over the copy bandwidth;
less where what shares a mean is still in the L2 cache when it is read again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import dense, dense_like
from .activation import ACTIVATIONS, LEAKY_RELU, activate, activate_curvature, activate_slope
from .bias_act import FLOAT64_SHARE, PROGRAMS, WIDE_FROM, float64_bits
from .elementary import float_from_bits, to_storage

# Elements of a tile for 128 threads, by the order of the derivative: each order keeps more tensors and sums.
TILES = (2048, 1024, 512)
TILE_ROWS = 16  # of a tile whose columns have their own channels, where there are enough columns
LONG_ROW = 256  # the inner extent from which a row has one channel
SUM_TILE = (64, 8)  # of sums that are added up
NORMS = ("batch", "group", "affine")
BATCH, GROUP, AFFINE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SUMS = (2, 2, 12)  # of each order
COEFFICIENTS = (0, 2, 5)

# Recompiled for no other slope, eps or number of steps.
_numbers = triton.jit(do_not_specialize=("slope", "eps", "steps"))


@triton.jit
def _of_channel(pointer, channel, default: tl.constexpr, dtype: tl.constexpr):
    if pointer is not None:
        value = tl.load(pointer + channel).to(dtype)
    else:
        value = tl.full(channel.shape, default, dtype)
    return value


@triton.jit
def _line(
    mean, var, weight, bias, row, column, rows_all, columns, per, inner, channels, groups, eps,
    NORM: tl.constexpr, BY_ROW: tl.constexpr, GATHER: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Each line's channel, statistic, mean, 1 / deviation, weight and bias. Beyond the end those of the last."""
    row = tl.minimum(row, rows_all - 1)
    column = tl.minimum(column, columns - 1)
    if BY_ROW:
        channel = (row % per).to(tl.int32)
        if GATHER:
            channel = channel * (channels // per) + (column // inner).to(tl.int32)
    else:
        channel = (column // inner).to(tl.int32)
    if NORM == GROUP:
        if GATHER:
            stat = row.to(tl.int32)
        else:
            stat = (row // per).to(tl.int32) * groups + channel // (channels // groups)
    else:
        stat = channel
    if NORM == AFFINE:
        m = tl.zeros(channel.shape, dtype)
        r = tl.full(channel.shape, 1.0, dtype)
    else:
        m = tl.load(mean + stat)
        r = 1.0 / tl.sqrt(tl.load(var + stat) + eps)
    w = _of_channel(weight, channel, 1.0, dtype)
    return channel, stat, m, r, w, _of_channel(bias, channel, 0.0, dtype)


@triton.jit
def _place(
    program, steps, rows, columns, pieces,
    BY_ROW: tl.constexpr, index: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A program's first rows in its matrix, the number of that, its first columns, and its piece."""
    if BY_ROW:
        piece, matrix = program % pieces, 0
        row = (program // pieces).to(index) * R + tl.arange(0, R)[:, None]
        column = (piece * steps).to(index) * C + tl.arange(0, C)[None, :]
    else:
        tiles = tl.cdiv(columns, C)
        piece, matrix = program // tiles % pieces, program // tiles // pieces
        row = (piece * steps).to(index) * R + tl.arange(0, R)[:, None]
        column = (program % tiles).to(index) * C + tl.arange(0, C)[None, :]
    return row, column, matrix, piece


@triton.jit
def _keep(
    parts, k, total, row, column, matrix, piece, rows, columns, matrices, pieces,
    BY_ROW: tl.constexpr,
):  # fmt: skip
    """Stores the sums number k of a program's lines: as (rows, pieces), or as (pieces, matrices, columns)."""
    if BY_ROW:
        at = parts + k * tl.cast(rows, tl.int64) * pieces
        tl.store(at + row * pieces + piece, tl.sum(total, 1, keep_dims=True), mask=row < rows)
    else:
        at = parts + k * tl.cast(columns, tl.int64) * pieces * matrices
        line = tl.cast(piece * matrices + matrix, tl.int64) * columns + column
        tl.store(at + line, tl.sum(total, 0, keep_dims=True), mask=column < columns)


@_numbers
def moments_kernel(
    x, parts, rows, columns, matrices, pieces, steps,
    BY_ROW: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The mean of each line of a piece, and the sum of the squares about it."""
    dtype: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    along: tl.constexpr = 1 if BY_ROW else 0
    row, column, matrix, piece = _place(
        tl.program_id(0), steps, rows, columns, pieces, BY_ROW, index, R, C
    )
    base = x + tl.cast(matrix, tl.int64) * rows * columns
    length, tile = (columns, C) if BY_ROW else (rows, R)
    count = tl.minimum(length - piece * steps * tile, steps * tile)
    # Squares are summed about the mean of the first tile, since about zero they would cancel.
    inside = (row < rows) & (column < columns)
    first = tl.load(base + row * columns + column, mask=inside, other=0.0).to(dtype)
    about = tl.sum(first, along, keep_dims=True) / tl.minimum(count, tile).to(dtype)
    total, square = tl.zeros((R, C), dtype), tl.zeros((R, C), dtype)
    for _ in range(steps):
        inside = (row < rows) & (column < columns)
        v = tl.load(base + row * columns + column, mask=inside, other=0.0).to(dtype)
        d = tl.where(inside, v - about, 0.0)
        total += d
        square += d * d
        if BY_ROW:
            column += C
        else:
            row += R
    total = tl.sum(total, along, keep_dims=True)
    beside = total / count.to(dtype)
    square = tl.sum(square, along, keep_dims=True) - total * beside
    _keep(
        parts,
        0,
        about + beside,
        row,
        column,
        matrix,
        piece,
        rows,
        columns,
        matrices,
        pieces,
        BY_ROW,
    )
    _keep(parts, 1, square, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)


@_numbers
def sums_kernel(
    x, dy, ddx, mean, var, weight, bias, p, q, parts,
    rows, columns, matrices, pieces, per, inner, channels, groups, steps, eps: tl.int64, slope: tl.int64,
    ACT: tl.constexpr, NORM: tl.constexpr, BY_ROW: tl.constexpr, GATHER: tl.constexpr, WIDE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The sums of the lines of a piece, that the coefficients of a backward pass are made of; with `ddx` of a second.

    u = weight dz, v = ddx, o is what p and q add to what reaches xhat, c = weight^2 dy act''. In order: u, u xhat;
    v, v xhat, u v, o, o xhat; c, c xhat, c xhat^2, c v, c v xhat.
    """
    dtype: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    row, column, matrix, piece = _place(
        tl.program_id(0), steps, rows, columns, pieces, BY_ROW, index, R, C
    )
    first_row = tl.cast(matrix, index) * rows
    lines, eps_value = tl.cast(matrices, index) * rows, float_from_bits(eps, dtype)
    slope_value = float_from_bits(slope, dtype)
    u0, u1 = tl.zeros((R, C), dtype), tl.zeros((R, C), dtype)
    if ddx is not None:
        v0, v1, uv = tl.zeros((R, C), dtype), tl.zeros((R, C), dtype), tl.zeros((R, C), dtype)
        o0, o1 = tl.zeros((R, C), dtype), tl.zeros((R, C), dtype)
        if ACT > LEAKY_RELU:
            c0, c1, c2 = tl.zeros((R, C), dtype), tl.zeros((R, C), dtype), tl.zeros((R, C), dtype)
            cv0, cv1 = tl.zeros((R, C), dtype), tl.zeros((R, C), dtype)
    if not GATHER:
        channel, _, m, r, w, b = _line(
            mean, var, weight, bias, first_row + row, column, lines, columns, per, inner, channels, groups,
            eps_value, NORM, BY_ROW, GATHER, dtype
        )  # fmt: skip
        if ddx is not None:
            pc, qc = _of_channel(p, channel, 0.0, dtype), _of_channel(q, channel, 0.0, dtype)
    for _ in range(steps):
        if GATHER:
            channel, _, m, r, w, b = _line(
                mean, var, weight, bias, first_row + row, column, lines, columns, per, inner, channels, groups,
                eps_value, NORM, BY_ROW, GATHER, dtype
            )  # fmt: skip
            if ddx is not None:
                pc, qc = _of_channel(p, channel, 0.0, dtype), _of_channel(q, channel, 0.0, dtype)
        inside = (row < rows) & (column < columns)
        at = (first_row + row) * columns + column
        xhat = (tl.load(x + at, mask=inside, other=0.0).to(dtype) - m) * r
        d = tl.load(dy + at, mask=inside, other=0.0).to(dtype)
        z = xhat * w + b
        # Beyond the end dy and ddx are 0, and so is everything that is summed.
        dz = d * activate_slope(z, slope_value, ACT)
        dz = tl.where(inside, dz, 0.0)
        u = w * dz
        ux = u * xhat
        u0 += u
        u1 += ux
        if ddx is not None:
            v = tl.load(ddx + at, mask=inside, other=0.0).to(dtype)
            o = pc * dz
            v0 += v
            v1 += v * xhat
            uv += u * v
            if ACT > LEAKY_RELU:
                c = tl.where(inside, w * d * activate_curvature(z, ACT), 0.0)
                o += c * (pc * xhat + qc)
                c *= w
                c0 += c
                c1 += c * xhat
                c2 += c * xhat * xhat
                cv0 += c * v
                cv1 += c * v * xhat
            o0 += o
            o1 += o * xhat
        if BY_ROW:
            column += C
        else:
            row += R
    _keep(parts, 0, u0, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
    _keep(parts, 1, u1, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
    if ddx is not None:
        _keep(parts, 2, v0, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
        _keep(parts, 3, v1, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
        _keep(parts, 4, uv, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
        _keep(parts, 5, o0, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
        _keep(parts, 6, o1, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
        if ACT > LEAKY_RELU:
            _keep(parts, 7, c0, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
            _keep(parts, 8, c1, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
            _keep(parts, 9, c2, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW)
            _keep(
                parts, 10, cv0, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW
            )
            _keep(
                parts, 11, cv1, row, column, matrix, piece, rows, columns, matrices, pieces, BY_ROW
            )


@triton.jit
def _total(parts, k, outer, members, inner, member, E: tl.constexpr):
    """The sum of parts[k, :, member, :] in float64."""
    total = tl.zeros((E, member.shape[1]), tl.float64)
    base = parts + k * tl.cast(outer * inner, tl.int64) * members
    for start in range(0, outer * inner, E):
        e = start + tl.arange(0, E)[:, None]
        place = (e // inner).to(tl.int64) * members * inner + member * inner + e % inner
        inside = (e < outer * inner) & (member < members)
        total += tl.load(base + place, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 0, keep_dims=True)


@_numbers
def statistics_kernel(
    parts, mean, var, outer, members, inner, length, pieces, span, values,
    BY_ROW: tl.constexpr, E: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Mean and variance from those of the pieces, of which each but the last has `span` of `length` values a line."""
    member = tl.program_id(0) * G + tl.arange(0, G)[None, :]
    base = parts + tl.cast(outer * inner, tl.int64) * members
    total = tl.zeros((1, G), tl.float64)
    result = total
    for phase in tl.static_range(2):
        sums = tl.zeros((E, G), tl.float64)
        for start in range(0, outer * inner, E):
            e = start + tl.arange(0, E)[:, None]
            place = (e // inner).to(tl.int64) * members * inner + member * inner + e % inner
            inside = (e < outer * inner) & (member < members)
            piece = (e % inner) % pieces if BY_ROW else e // inner
            count = tl.minimum(length - piece * span, span).to(tl.float64)
            own = tl.load(parts + place, mask=inside, other=0.0).to(tl.float64)
            if phase == 0:
                sums += tl.where(inside, count * own, 0.0)
            else:
                square = tl.load(base + place, mask=inside, other=0.0).to(tl.float64)
                sums += tl.where(inside, square + count * (own - total) * (own - total), 0.0)
        if phase == 0:
            total = tl.sum(sums, 0, keep_dims=True) / values
            tl.store(mean + member, total.to(mean.dtype.element_ty), mask=member < members)
        else:
            result = tl.sum(sums, 0, keep_dims=True) / values
            tl.store(var + member, result.to(var.dtype.element_ty), mask=member < members)


@_numbers
def coefficients_kernel(
    parts, var, out, outer, members, inner, values, eps: tl.int64,
    SECOND: tl.constexpr, SMOOTH: tl.constexpr, E: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """What a statistic adds to the results, (2, members): E u and E(u xhat); with SECOND (5, members), see there."""
    member = tl.program_id(0) * G + tl.arange(0, G)[None, :]
    inside = member < members
    dtype: tl.constexpr = out.dtype.element_ty
    u = _total(parts, 0, outer, members, inner, member, E) / values
    a = _total(parts, 1, outer, members, inner, member, E) / values
    if not SECOND:
        tl.store(out + member, u.to(dtype), mask=inside)
        tl.store(out + members + member, a.to(dtype), mask=inside)
    else:
        v = _total(parts, 2, outer, members, inner, member, E) / values
        b = _total(parts, 3, outer, members, inner, member, E) / values
        uv = _total(parts, 4, outer, members, inner, member, E) / values
        e = _total(parts, 5, outer, members, inner, member, E) / values
        ex = _total(parts, 6, outer, members, inner, member, E) / values
        held = tl.load(var + member, mask=inside, other=1.0).to(tl.float64)
        r = 1.0 / tl.sqrt(held + float_from_bits(eps, tl.float64))
        if SMOOTH:
            c0 = _total(parts, 7, outer, members, inner, member, E) / values
            c1 = _total(parts, 8, outer, members, inner, member, E) / values
            c2 = _total(parts, 9, outer, members, inner, member, E) / values
            e += r * (
                _total(parts, 10, outer, members, inner, member, E) / values - v * c0 - b * c1
            )
            ex += r * (
                _total(parts, 11, outer, members, inner, member, E) / values - v * c1 - b * c2
            )
        spread = uv - u * v - a * b
        mean = e - r * (b * u + a * v)
        along = ex - 2.0 * r * a * b + r * spread
        tl.store(out + member, v.to(dtype), mask=inside)
        tl.store(out + members + member, b.to(dtype), mask=inside)
        tl.store(out + 2 * members + member, a.to(dtype), mask=inside)
        tl.store(out + 3 * members + member, mean.to(dtype), mask=inside)
        tl.store(out + 4 * members + member, along.to(dtype), mask=inside)


@_numbers
def results_kernel(
    x, dy, ddx, mean, var, weight, bias, p, q, coefficients, first, second, parts,
    rows, columns, pieces, per, inner, channels, groups, stats, steps, eps: tl.int64, slope: tl.int64,
    ACT: tl.constexpr, NORM: tl.constexpr, BY_ROW: tl.constexpr, WIDE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """y; with `dy` dx; with `ddx` grad_dy and grad_x. And the gradients of weight and bias, summed over a piece."""
    storage: tl.constexpr = x.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    # Whether the statistics change on the way.
    moves: tl.constexpr = NORM == GROUP and not BY_ROW
    row, column, matrix, piece = _place(
        tl.program_id(0), steps, rows, columns, pieces, BY_ROW, index, R, C
    )
    eps_value, slope_value = float_from_bits(eps, dtype), float_from_bits(slope, dtype)
    of_weight, of_bias = tl.zeros((R, C), dtype), tl.zeros((R, C), dtype)
    if not moves:
        channel, stat, m, r, w, b = _line(
            mean, var, weight, bias, row, column, rows, columns, per, inner, channels, groups,
            eps_value, NORM, BY_ROW, False, dtype
        )  # fmt: skip
    for _ in range(steps):
        if moves:
            channel, stat, m, r, w, b = _line(
                mean, var, weight, bias, row, column, rows, columns, per, inner, channels, groups,
                eps_value, NORM, BY_ROW, False, dtype
            )  # fmt: skip
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        xhat = (tl.load(x + at, mask=inside, other=0.0).to(dtype) - m) * r
        z = xhat * w + b
        if dy is None:
            y = activate(z, slope_value, ACT)
            tl.store(first + at, to_storage(y, storage), mask=inside)
        else:
            d = tl.load(dy + at, mask=inside, other=0.0).to(dtype)
            act_slope = activate_slope(z, slope_value, ACT)
            dz = tl.where(inside, d * act_slope, 0.0)
            if ddx is None:
                dx = w * dz
                if NORM != AFFINE:
                    dx -= tl.load(coefficients + stat) + xhat * tl.load(coefficients + stats + stat)
                tl.store(first + at, to_storage(r * dx, storage), mask=inside)
                of_weight += dz * xhat
                of_bias += dz
            else:
                v = tl.load(ddx + at, mask=inside, other=0.0).to(dtype)
                pc, qc = _of_channel(p, channel, 0.0, dtype), _of_channel(q, channel, 0.0, dtype)
                h = v
                if NORM != AFFINE:
                    mean_v, b_v = tl.load(coefficients + stat), tl.load(coefficients + stats + stat)
                    h = r * (v - mean_v - xhat * b_v)
                t = w * h + pc * xhat + qc
                e = pc * dz
                of_weight += dz * h
                if ACT > LEAKY_RELU:
                    s = tl.where(inside, d * activate_curvature(z, ACT) * t, 0.0)
                    e += w * s
                    of_weight += s * xhat
                    of_bias += s
                if NORM != AFFINE:
                    a = tl.load(coefficients + 2 * stats + stat)
                    e -= r * (b_v * (w * dz) + a * v)
                    e -= tl.load(coefficients + 3 * stats + stat)
                    e -= xhat * tl.load(coefficients + 4 * stats + stat)
                tl.store(first + at, to_storage(act_slope * t, storage), mask=inside)
                tl.store(second + at, to_storage(r * e, storage), mask=inside)
        if BY_ROW:
            column += C
        else:
            row += R
    if dy is not None:
        _keep(parts, 0, of_weight, row, column, matrix, piece, rows, columns, 1, pieces, BY_ROW)
        _keep(parts, 1, of_bias, row, column, matrix, piece, rows, columns, 1, pieces, BY_ROW)


@triton.jit
def gradients_kernel(
    parts, dweight, dbias, outer, channels, inner, E: tl.constexpr, G: tl.constexpr
):
    channel = tl.program_id(0) * G + tl.arange(0, G)[None, :]
    dtype: tl.constexpr = dweight.dtype.element_ty
    total = _total(parts, 0, outer, channels, inner, channel, E)
    tl.store(dweight + channel, total.to(dtype), mask=channel < channels)
    total = _total(parts, 1, outer, channels, inner, channel, E)
    tl.store(dbias + channel, total.to(dtype), mask=channel < channels)


class _Plan(NamedTuple):
    """A tensor as matrices one after another, and how programs go over them."""

    rows: int
    columns: int
    matrices: int
    per: int  # rows a sample
    inner: int  # columns a channel
    by_row: bool
    gather: bool  # a row has several channels
    pieces: int  # of each line
    steps: int  # tiles of a piece
    tile: tuple[int, int]

    @property
    def programs(self) -> int:
        lines = self.rows if self.by_row else self.columns
        size = self.tile[0] if self.by_row else self.tile[1]
        return triton.cdiv(lines, size) * self.matrices * self.pieces

    @property
    def parts(self) -> int:
        return (self.rows if self.by_row else self.columns * self.matrices) * self.pieces


def _plan(x: Tensor, norm: str, groups: int, tile: int, sums: bool) -> _Plan:
    """For the sums over what shares a mean, or for the results."""
    n, c, *rest = x.shape
    space, gather, matrices = math.prod(rest), False, 1
    if x.is_contiguous() and space >= LONG_ROW:
        rows, columns, per, inner, by_row = n * c, space, c, 1, True
    elif x.is_contiguous() and sums and norm == "group":
        rows, columns, per, inner, by_row = n * groups, c // groups * space, groups, space, True
        gather = True
    elif x.is_contiguous():
        rows, columns, per, inner, by_row = n, c * space, 1, space, False
    elif sums and norm == "group":
        rows, columns, per, inner, by_row, matrices = space, c, space, 1, False, n
    else:
        rows, columns, per, inner, by_row = n * space, c, space, 1, False
    tile //= FLOAT64_SHARE if x.dtype == torch.float64 else 1
    wide = triton.next_power_of_2(columns)
    if by_row:
        width = min(wide, tile)
        height = min(triton.next_power_of_2(rows), tile // width)
    else:
        height = min(triton.next_power_of_2(rows), max(TILE_ROWS, tile // wide))
        width = min(wide, max(1, tile // height))
    lines, along = (
        (triton.cdiv(rows, height), triton.cdiv(columns, width))
        if by_row
        else (triton.cdiv(columns, width) * matrices, triton.cdiv(rows, height))
    )
    steps = triton.cdiv(along, min(along, triton.cdiv(PROGRAMS, lines)))
    pieces = triton.cdiv(along, steps)
    return _Plan(
        rows, columns, matrices, per, inner, by_row, gather, pieces, steps, (height, width)
    )


class _Call:
    """What the launches of one call share."""

    def __init__(
        self, x: Tensor, norm: str, groups: int, eps: float, act: str, slope: float
    ) -> None:
        self.x, self.norm, self.groups = x, norm, groups
        self.act, self.numbers = ACTIVATIONS.index(act), (float64_bits(eps), float64_bits(slope))
        self.wide = x.numel() >= WIDE_FROM
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.stats = {"batch": x.size(1), "group": x.size(0) * groups, "affine": 0}[norm]
        self.values = x.numel() // max(self.stats, 1)

    def new(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.x.device)

    def entries(self, plan: _Plan) -> tuple[int, int, int]:
        """(outer, statistics, inner) of a plan's partial sums."""
        if self.norm == "batch":
            return self.of_channels(plan)
        return (
            (1 if plan.by_row else plan.pieces),
            self.stats,
            plan.parts // self.stats // (1 if plan.by_row else plan.pieces),
        )

    def of_channels(self, plan: _Plan) -> tuple[int, int, int]:
        if plan.by_row:
            return plan.rows // plan.per, self.x.size(1), plan.pieces
        return plan.pieces, self.x.size(1), plan.inner

    def statistics(self, mean: Tensor, var: Tensor) -> None:
        plan = _plan(self.x, self.norm, self.groups, TILES[0], True)
        parts = self.new(SUMS[0] * plan.parts)
        moments_kernel[(plan.programs,)](
            self.x, parts, plan.rows, plan.columns, plan.matrices, plan.pieces, plan.steps, plan.by_row,
            self.wide, *plan.tile
        )  # fmt: skip
        outer, members, inner = self.entries(plan)
        length, tile = (plan.columns, plan.tile[1]) if plan.by_row else (plan.rows, plan.tile[0])
        statistics_kernel[(triton.cdiv(members, SUM_TILE[1]),)](
            parts, mean, var, outer, members, inner, length, plan.pieces, plan.steps * tile, self.values,
            plan.by_row, *SUM_TILE
        )  # fmt: skip

    def coefficients(
        self, order: int, tensors: tuple[Tensor | None, ...], vectors: tuple[Tensor | None, ...]
    ) -> Tensor | None:
        if self.norm == "affine":
            return None
        smooth = self.act > ACTIVATIONS.index("leaky_relu")
        plan = _plan(self.x, self.norm, self.groups, TILES[order], True)
        parts = self.new(SUMS[order] * plan.parts)
        sums_kernel[(plan.programs,)](
            *tensors, *vectors, parts, plan.rows, plan.columns, plan.matrices, plan.pieces, plan.per, plan.inner,
            self.x.size(1), self.groups, plan.steps, *self.numbers, self.act, NORMS.index(self.norm), plan.by_row,
            plan.gather, self.wide, *plan.tile
        )  # fmt: skip
        outer, members, inner = self.entries(plan)
        out = self.new(COEFFICIENTS[order] * members)
        coefficients_kernel[(triton.cdiv(members, SUM_TILE[1]),)](
            parts, vectors[1], out, outer, members, inner, self.values, self.numbers[0], order == 2, smooth, *SUM_TILE
        )  # fmt: skip
        return out

    def results(
        self,
        order: int,
        tensors: tuple[Tensor | None, ...],
        vectors: tuple[Tensor | None, ...],
        coefficients: Tensor | None,
        outputs: tuple[Tensor | None, Tensor | None],
        gradients: tuple[Tensor, ...],
    ) -> None:
        plan = _plan(self.x, self.norm, self.groups, TILES[order], False)
        parts = self.new(2 * plan.parts) if gradients else None
        results_kernel[(plan.programs,)](
            *tensors, *vectors, coefficients, *outputs, parts, plan.rows, plan.columns, plan.pieces, plan.per,
            plan.inner, self.x.size(1), self.groups, self.stats, plan.steps, *self.numbers, self.act,
            NORMS.index(self.norm), plan.by_row, self.wide, *plan.tile
        )  # fmt: skip
        if parts is not None:
            outer, channels, inner = self.of_channels(plan)
            grid = (triton.cdiv(channels, SUM_TILE[1]),)
            gradients_kernel[grid](parts, *gradients, outer, channels, inner, *SUM_TILE)


def _vectors(*given: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None or t.numel() == 0 else t.contiguous() for t in given)


def norm_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """y, laid out as x if that is dense, else contiguous; mean and var."""
    x = dense(x)
    call = _Call(x, *settings)
    shape = (x.size(0), call.groups) if call.norm == "group" else (call.stats,)
    y, mean, var = torch.empty_like(x), *(call.new(call.stats).reshape(shape) for _ in range(2))
    if x.numel() == 0:
        return y, mean.zero_(), var.zero_()
    with torch.cuda.device_of(x):
        if call.norm != "affine":
            call.statistics(mean, var)
        vectors = (*_vectors(mean, var, weight, bias), None, None)
        call.results(0, (x, None, None), vectors, None, (y, None), ())
    return y, mean, var


def norm_act_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, and the gradients of weight and bias in the type that is computed in."""
    x = dense(x)
    call = _Call(x, *settings)
    dx, dweight, dbias = torch.empty_like(x), call.new(x.size(1)), call.new(x.size(1))
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_()
    with torch.cuda.device_of(x):
        tensors = (x, dense_like(dy, x), None)
        vectors = (*_vectors(mean, var, weight, bias), None, None)
        coefficients = call.coefficients(1, tensors, vectors)
        call.results(1, tensors, vectors, coefficients, (dx, None), (dweight, dbias))
    return dx, dweight, dbias


def norm_act_backward_backward(
    ddx: Tensor,
    ddweight: Tensor,
    ddbias: Tensor,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to dy, x, weight and bias."""
    x = dense(x)
    call = _Call(x, *settings)
    grad_dy, grad_x = torch.empty_like(x), torch.empty_like(x)
    grad_weight, grad_bias = call.new(x.size(1)), call.new(x.size(1))
    if x.numel() == 0:
        return grad_dy, grad_x, grad_weight.zero_(), grad_bias.zero_()
    with torch.cuda.device_of(x):
        tensors = (x, dense_like(dy, x), dense_like(ddx, x))
        vectors = _vectors(mean, var, weight, bias, ddweight, ddbias)
        coefficients = call.coefficients(2, tensors, vectors)
        outputs, gradients = (grad_dy, grad_x), (grad_weight, grad_bias)
        call.results(2, tensors, vectors, coefficients, outputs, gradients)
    return grad_dy, grad_x, grad_weight, grad_bias
