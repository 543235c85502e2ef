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
from torch import Tensor

from .._layout import dense, dense_like
from .activation import ACTIVATIONS
from .bias_act import FLOAT64_SHARE, PROGRAMS, WIDE_FROM, float64_bits
from .norm_passes import (
    coefficients_kernel,
    gradients_kernel,
    moments_kernel,
    results_kernel,
    statistics_kernel,
    sums_kernel,
)

# Elements of a tile for 128 threads, by the order of the derivative: each order keeps more tensors and sums.
TILES = (2048, 1024, 512)
TILE_ROWS = 16  # of a tile whose columns have their own channels, where there are enough columns
LONG_ROW = 256  # the inner extent from which a row has one channel
SUM_TILE = (64, 8)  # of sums that are added up
NORMS = ("batch", "group", "affine")
SUMS = (2, 2, 12)  # of each order
COEFFICIENTS = (0, 2, 5)


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


def batch_norm_given(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> Tensor:
    """The second pass of a batch norm alone, for statistics that are known."""
    x = dense(x)
    call = _Call(x, "batch", x.size(1), eps, act, slope)
    y = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            vectors = (*_vectors(mean, var, weight, bias), None, None)
            call.results(0, (x, None, None), vectors, None, (y, None), ())
    return y


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
