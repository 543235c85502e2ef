"""mmd: the squared maximum mean discrepancy of two samples, without a matrix of their pairs.

    k(a, b) = sum over bandwidths s of exp(-|a - b|^2 / (2 s^2))
    unbiased = mean of k(x_i, x_j) over i != j + mean of k(y_i, y_j) over i != j - 2 mean of k(x_i, y_j)
    biased = the same with the pairs i = j, which is the squared distance of the two mean embeddings

    x           (N, D) of any layout, N at least 2 for the unbiased estimate, else 1
    y           (M, D) of x's dtype, likewise
    bandwidths  one or more positive numbers s, in units of x
    returns     a scalar, float32, or float64 for float64

Gretton et al. 2012, "A kernel two-sample test", equations 3 and 5; the mixture of bandwidths is that of Li et al. 2015,
"Generative moment matching networks". The unbiased estimate has mean 0 where both samples are of one distribution, and
so is negative about half of the time.

Distances are |a|^2 + |b|^2 - 2 a.b after the mean of x is taken off all vectors, in the type of the result: of vectors
that lie within L of that mean, a squared distance is off by about L^2 roundings. Where a gradient is wanted it is
computed together with the value and kept, (N, D) and (M, D), so that the backward pass is a multiplication.
Differentiable any number of times in x and y; from the second order on by torch's own operations, with the matrix. Half
types and autocast are computed in float32. Deterministic, the same bits on any number of threads. NaN or infinity in
either sample gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _backends
from ._common import (
    TYPE_NUMBER,
    accumulation,
    address,
    apply,
    check_float,
    forward_mode,
    fresh,
    needs_grad,
    under_autocast,
)
from ._registry import FLOATS, BadCall, Kernel, Op, Row, Sample, T, register


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation(x.dtype)
    x, y = x.to(dtype), y.to(dtype)
    centre = x.detach().mean(0)
    return x - centre, y - centre


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)).clamp(min=0)


def _kernel(distance: Tensor, bandwidths: Sequence[float], power: int = 0) -> Tensor:
    """Sum over bandwidths of exp(-distance / (2 s^2)) / s^power."""
    return sum(
        (torch.exp(distance * (-0.5 / s**2)) * s**-power for s in bandwidths),
        torch.zeros_like(distance),
    )


def _means(rows: int, others: int, unbiased: bool) -> tuple[float, float, float]:
    """What sums over the pairs of x, of y and of both are multiplied by."""
    own = [1 / (n * (n - 1) if unbiased else n * n) for n in (rows, others)]
    return own[0], own[1], 1 / (rows * others)


def mmd_reference(
    x: Tensor, y: Tensor, bandwidths: Sequence[float], *, unbiased: bool = True
) -> Tensor:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    own_x, own_y, cross = _means(x.size(0), y.size(0), unbiased)
    x, y = _centred(x, y)

    def total(values: Tensor) -> Tensor:
        return values.sum(1).sum()  # row by row, which does not depend on the number of threads

    def own(a: Tensor) -> Tensor:
        values = _kernel(_squared_distances(a, a), bandwidths)
        # The distance of a vector to itself is 0, not a rounding.
        values = values.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), 0)
        return total(values) + (0 if unbiased else len(a) * len(bandwidths))

    met = total(_kernel(_squared_distances(x, y), bandwidths))
    return own_x * own(x) + own_y * own(y) - 2 * cross * met


def _slopes(
    x: Tensor, y: Tensor, bandwidths: Sequence[float], unbiased: bool, wanted: int
) -> tuple[Tensor, Tensor]:
    """The derivatives by x and y, from torch's operations, in the type that is computed in."""
    own_x, own_y, cross = _means(x.size(0), y.size(0), unbiased)
    x, y = _centred(x, y)

    def pull(a: Tensor, b: Tensor) -> Tensor:
        """sum over j of weight(a_i, b_j) (b_j - a_i)"""
        weight = _kernel(_squared_distances(a, b), bandwidths, 2)
        return weight @ b - weight.sum(1)[:, None] * a

    dx = 2 * own_x * pull(x, x) - 2 * cross * pull(x, y) if wanted & 1 else x.new_empty(0)
    dy = 2 * own_y * pull(y, y) - 2 * cross * pull(y, x) if wanted & 2 else y.new_empty(0)
    return dx, dy


def _reference(
    x: Tensor, y: Tensor, bandwidths: Sequence[float], unbiased: bool, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    value = mmd_reference(x, y, bandwidths, unbiased=unbiased)
    return value, *_slopes(x, y, bandwidths, unbiased, wanted)


def _fake(
    x: Tensor, y: Tensor, bandwidths: Sequence[float], unbiased: bool, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation(x.dtype)
    dx, dy = (fresh(t, t.shape if wanted >> k & 1 else (0,), dtype) for k, t in enumerate((x, y)))
    return x.new_empty((), dtype=dtype), dx, dy


def _cpu(
    x: Tensor, y: Tensor, bandwidths: Sequence[float], unbiased: bool, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x.contiguous(), y.contiguous()
    value, dx, dy = _fake(x, y, bandwidths, unbiased, wanted)
    widths = torch.tensor(bandwidths, dtype=torch.float64)
    own_x, own_y, cross = _means(len(x), len(y), unbiased)
    _backends.native("_cpu").mmd(
        x.data_ptr(),
        y.data_ptr(),
        widths.data_ptr(),
        value.data_ptr(),
        address(dx if wanted & 1 else None),
        address(dy if wanted & 2 else None),
        *(len(x), *y.shape, len(bandwidths), own_x, own_y, cross),
        0.0 if unbiased else len(bandwidths) * (1 / len(x) + 1 / len(y)),
        *(TYPE_NUMBER[x.dtype], torch.get_num_threads()),
    )
    return value, dx, dy


# Bit k of `wanted` asks for the derivative by x (0) or y (1); it is empty without.
_forward = Kernel(
    "mmd(Tensor x, Tensor y, float[] bandwidths, bool unbiased, int wanted)"
    " -> (Tensor value, Tensor dx, Tensor dy)",
    reference=_reference,
    fake=_fake,
    cpu=_cpu,
    triton="mmd:mmd",
)


class _MMD(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, bandwidths: list[float], unbiased: bool, wanted: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(x, y, bandwidths, unbiased, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, *ctx.options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, y, *output[1:])

    @staticmethod
    def backward(ctx: Any, dvalue: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, y, *slopes = ctx.saved_tensors
        bandwidths, unbiased, wanted = ctx.options
        if needs_grad(dvalue, x, y):
            slopes = _slopes(x, y, bandwidths, unbiased, wanted)
        gradients = (
            (dvalue * slope).to(t.dtype) if wanted >> k & 1 else None
            for k, (t, slope) in enumerate(zip((x, y), slopes, strict=True))
        )
        return *gradients, None, None, None


def _check(x: Tensor, y: Tensor, bandwidths: Sequence[float], unbiased: bool) -> list[float]:
    least = 2 if unbiased else 1
    for name, t in (("x", x), ("y", y)):
        check_float(name, t)
        if t.dim() != 2 or t.size(0) < least or t.size(1) < 1:
            raise ValueError(
                f"{name} must have shape (N, D) with N at least {least}"
                f"{' for the unbiased estimate' if unbiased else ''}, got {tuple(t.shape)}"
            )
    if y.size(1) != x.size(1):
        raise ValueError(f"y must be as wide as x, {x.size(1)}, got {y.size(1)}")
    if y.device != x.device:
        raise ValueError(f"y must be on {x.device} like x, got {y.device}")
    if y.dtype != x.dtype:
        raise TypeError(f"y must have the dtype of x, {x.dtype}, got {y.dtype}")
    if isinstance(bandwidths, (str, Tensor)) or not isinstance(bandwidths, Sequence):
        raise TypeError(f"bandwidths must be a list of numbers, got {type(bandwidths).__name__}")
    if not bandwidths:
        raise ValueError("bandwidths must hold at least one number, got none")
    for s in bandwidths:
        if isinstance(s, bool) or not isinstance(s, (int, float)):
            raise TypeError(f"bandwidths must be numbers, got {s!r}")
        # Its square must be a number of float32, too.
        if not 1e-18 <= s <= 1e18:
            raise ValueError(f"bandwidths must lie in [1e-18, 1e18], got {s}")
    return [float(s) for s in bandwidths]


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float], *, unbiased: bool = True) -> Tensor:
    """The squared maximum mean discrepancy under a sum of Gaussian kernels, without an N x M matrix.

    Args:
        x: (N, D) float32, float64, bfloat16 or float16, of any layout.
        y: (M, D) of x's dtype and device.
        bandwidths: The kernels' standard deviations, in units of x, each in [1e-18, 1e18].
        unbiased: Whether pairs of a vector with itself are left out, so that the mean over samples
            is the discrepancy of the distributions; the biased estimate is never negative.

    Returns:
        A scalar in float32 (float64 for float64), differentiable in x and y.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device, dtype or range; the
            message names it.
    """
    if isinstance(x, Tensor) and isinstance(y, Tensor) and under_autocast(x.device):
        x, y = x.float(), y.float()
    unbiased = bool(unbiased)
    widths = _check(x, y, bandwidths, unbiased)
    if forward_mode():
        return mmd_reference(x, y, widths, unbiased=unbiased)
    wanted = needs_grad(x) | needs_grad(y) << 1
    if wanted:
        return apply(_MMD, x, y, widths, unbiased, wanted)[0]
    return _forward(x, y, widths, unbiased, 0)[0]


def _samples() -> tuple[Sample, ...]:
    widths = (0.5, 1.0, 2.0)
    return (
        # Whole tiles and blocks; an odd end of each, and of the width.
        Sample("whole tiles", (T((96, 32)), T((64, 32)), (4.0,))),
        Sample("odd ends", (T((13, 5)), T((11, 5)), widths)),
        Sample("biased", (T((7, 3)), T((9, 3)), widths), {"unbiased": False}),
        # More columns than a group, more rows than a piece, more dimensions than a chunk and a part.
        Sample("several groups, pieces", (T((301, 71)), T((270, 71)), (6.0, 12.0))),
        # Far from zero, where |a|^2 + |b|^2 - 2 a.b would have no digits left.
        Sample("far away", (T((40, 2), map=lambda x: x + 256), T((30, 2), map=lambda x: x + 256), widths)),
    )  # fmt: skip


def _bad_calls() -> tuple[BadCall, ...]:
    x, y = torch.zeros(5, 3), torch.zeros(4, 3)
    return (
        BadCall("another width", (x, y[:, :2], (1.0,)), {}, ValueError, "y must be as wide as x, 3, got 2"),
        BadCall("one vector", (x, y[:1], (1.0,)), {}, ValueError, "y must have shape .* at least 2"),
        BadCall("no vectors", (x[:0], y, (1.0,)), {"unbiased": False}, ValueError, "x must have shape"),
        BadCall("images", (x[None], y, (1.0,)), {}, ValueError, r"x must have shape \(N, D\)"),
        BadCall("integers", (x.long(), y, (1.0,)), {}, TypeError, "x must be float32"),
        BadCall("another dtype", (x, y.double(), (1.0,)), {}, TypeError, "y must have the dtype of x"),
        BadCall("another device", (x, y.to("meta"), (1.0,)), {}, ValueError, "y must be on cpu"),
        BadCall("no bandwidths", (x, y, ()), {}, ValueError, "bandwidths must hold at least one"),
        BadCall("a bandwidth", (x, y, 1.0), {}, TypeError, "bandwidths must be a list of numbers"),
        BadCall("a text", (x, y, ("1",)), {}, TypeError, "bandwidths must be numbers"),
        BadCall("a negative bandwidth", (x, y, (1.0, -1.0)), {}, ValueError, "bandwidths must lie in"),
        BadCall("not a number", (x, y, (math.nan,)), {}, ValueError, "bandwidths must lie in"),
    )  # fmt: skip


def _row(count: int, width: int, both: bool) -> Row:
    bandwidths = (2.0, 4.0, 8.0, 16.0, 32.0)

    def make() -> dict[str, Callable[[], Any]]:
        x = torch.randn(count, width, requires_grad=True)
        y = torch.randn(count, width, requires_grad=both)

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            distance = torch.cdist(a, b).square()
            return torch.stack(
                [torch.exp(distance * (-0.5 / s**2)).sum() for s in bandwidths]
            ).sum()

        def eager() -> Tensor:
            own = (kernel(x, x) + kernel(y, y) - 2 * count * len(bandwidths)) / (
                count * (count - 1)
            )
            return own - 2 * kernel(x, y) / count**2

        wanted = (x, y) if both else (x,)

        def run(f: Callable[[], Tensor]) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(f(), wanted)

        return {"ours": run(lambda: mmd(x, y, bandwidths)), "eager": run(eager)}

    # Pairs of a set with slopes are met once from each side, those of one without once.
    ours = 2 * count**2 if not both else 4 * count**2
    return Row(
        "mmd fwd+bwd" if both else "mmd fwd+bwd, one side",
        f"{count} x {count} x {width}, 5 bandwidths",
        make,
        bytes=4 * 4 * count * width,
        flops=ours * 4 * width + (0 if both else count**2 * width),
    )


def _rows() -> Sequence[Row]:
    return [_row(4096, 64, True), _row(4096, 64, False), _row(512, 2, False)]


register(
    Op(
        name="mmd",
        function=mmd,
        reference=mmd_reference,
        kernels=(_forward,),
        samples=_samples(),
        bad_calls=_bad_calls(),
        orders=1,  # as the checks see it: more come from torch's operations
        epsilon={dtype: 32 * torch.finfo(accumulation(dtype)).eps for dtype in FLOATS},
        rows=_rows,
    )
)
