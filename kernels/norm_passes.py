"""The kernels of norm_act: sums over pieces of what shares a mean, what follows from these, and the results.

`norm_act.py` launches them and says how they go over a tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import LEAKY_RELU, activate, activate_curvature, activate_slope
from .elementary import float_from_bits, to_storage

# The numbers are the places in norm_act.NORMS.
BATCH, GROUP, AFFINE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

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
