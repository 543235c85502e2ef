"""Checks of the numbers: right, the same again, and of any layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyfastgan.ops._registry import FLOATS, Op, Sample
from pyfastgan.testing.calls import assert_same, derivatives, inputs_of, run, tensors_of

# Finite differences cost a call an element and more.
_SMALL = 150


def _run_exact(op: Op, sample: Sample, dtype: torch.dtype, device: str) -> list[Tensor | None]:
    """The reference in float64 on the very numbers that `dtype` holds."""
    args, kwargs = sample.make(dtype, device)

    def widen(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = tuple(map(widen, args)), {k: widen(v) for k, v in kwargs.items()}
    if sample.takes_dtype:
        kwargs["dtype"] = torch.float64
    inputs = inputs_of(args, kwargs)
    if op.orders:
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        new = iter(inputs)

        def put(value: Any) -> Any:
            return next(new) if isinstance(value, Tensor) and value.is_floating_point() else value

        args, kwargs = tuple(map(put, args)), {k: put(v) for k, v in kwargs.items()}
    return derivatives(lambda: op.reference(*args, **kwargs), inputs, op.orders, dtype)


def _error(x: Tensor, exact: Tensor) -> float:
    """The largest error relative to max(|exact|, 1)."""
    if exact.numel() == 0:
        return 0.0
    return ((x.double() - exact.double()).abs() / exact.double().abs().clamp(min=1)).max().item()


def check_values(op: Op, sample: Sample, dtype: torch.dtype, device: str = "cpu") -> None:
    """Values and derivatives: at most twice plain PyTorch's error against float64, plus the op's
    epsilon."""
    if sample.takes_dtype and dtype not in FLOATS:
        return
    exact = _run_exact(op, sample, dtype, device)
    plain = run(op.reference, op, sample, dtype, device)
    ours = run(op.function, op, sample, dtype, device)
    assert len(ours) == len(exact)
    _assert_close(op, sample, dtype, ours, plain, exact)
    if op.orders > 1:
        # Without a graph to differentiate again, another kernel may serve the first derivatives.
        ours = run(op.function, op, sample, dtype, device, orders=1)
        _assert_close(op, sample, dtype, ours, plain[: len(ours)], exact[: len(ours)])


def _assert_close(
    op: Op,
    sample: Sample,
    dtype: torch.dtype,
    ours: list[Tensor | None],
    plain: list[Tensor | None],
    exact: list[Tensor | None],
) -> None:
    for k, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True)):
        what = f"{op.name}, {sample.label}, {dtype}, result {k}"
        if c is None or a is None:
            # A derivative that is zero everywhere may be missing on either side.
            zero = a if a is not None else c
            assert zero is None or zero.abs().sum() == 0, f"{what} is missing"
            continue
        assert a.shape == c.shape, f"{what} has shape {tuple(a.shape)}, not {tuple(c.shape)}"
        if not a.is_floating_point():
            assert torch.equal(a, c), f"{what}: integers differ"
            continue
        limit = 2 * (_error(b, c) if b is not None else 0.0) + op.epsilon[dtype]
        assert _error(a, c) <= limit, f"{what} is off by {_error(a, c):.3g}, allowed {limit:.3g}"


def _finite_difference_call(op: Op, sample: Sample, device: str) -> Any:
    args, kwargs = sample.make(torch.float64, device)
    inputs = inputs_of(args, kwargs)
    if not op.orders or not inputs or sum(x.numel() for x in inputs) > _SMALL:
        return None
    for x in inputs:
        x.requires_grad_()

    def call(*tensors: Tensor) -> Any:
        new = iter(tensors)

        def put(value: Any) -> Any:
            return next(new) if isinstance(value, Tensor) and value.is_floating_point() else value

        # A tuple, since a bare map would be read after the keyword arguments.
        return op.function(*tuple(map(put, args)), **{k: put(v) for k, v in kwargs.items()})

    return call, inputs


def check_finite_differences(op: Op, sample: Sample, device: str = "cpu") -> None:
    """`gradcheck`, and `gradgradcheck` where there is a second order, for calls small enough."""
    prepared = _finite_difference_call(op, sample, device)
    if prepared is None:
        return
    call, inputs = prepared
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    if op.orders > 1:
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def check_same_bits(op: Op, sample: Sample, dtype: torch.dtype, device: str = "cpu") -> None:
    """The same call gives the same bits again, on one thread and on several, and leaves nothing
    uninitialised."""
    first = run(op.function, op, sample, dtype, device)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = run(op.function, op, sample, dtype, device)
            assert_same(first, again, f"{op.name}, {sample.label}, {dtype}, {count} threads")
    finally:
        torch.set_num_threads(threads)
    with _uninitialised_memory_is_nan():
        again = run(op.function, op, sample, dtype, device)
        assert_same(first, again, f"{op.name}, {sample.label}, {dtype}, NaN in new memory")


@contextmanager
def _uninitialised_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert math.isnan(torch.empty(1).item())
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def check_layouts(op: Op, sample: Sample, device: str = "cpu") -> None:
    """Inputs that lie in memory in any other way give the same values."""
    args, kwargs = sample.make(torch.float64, device)
    expected = tensors_of(op.function(*args, **kwargs))

    def scatter(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() == 0:
            return value
        wide = torch.full((*value.shape, 2), math.nan, dtype=value.dtype, device=value.device)
        wide[..., 0] = value
        return wide[..., 0]

    def turn(value: Any) -> Any:
        """The dimensions in reverse order in memory."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        order = tuple(reversed(range(value.dim())))
        return value.permute(order).contiguous().permute(order)

    for change in (scatter, turn):
        moved = op.function(*map(change, args), **{k: change(v) for k, v in kwargs.items()})
        for a, b in zip(tensors_of(moved), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def check_not_finite(op: Op, sample: Sample, device: str = "cpu") -> None:
    """NaN and infinity in the inputs neither crash nor vanish.

    NaN gives NaN just where the reference does. For infinity torch's own functions differ between
    their vector and scalar code (gelu), so there an op may be better than the reference, and must
    not add a NaN.
    """
    for bad in (math.nan, math.inf, -math.inf):

        def spoil(value: Any, bad: float = bad) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                return value
            value = value.clone()
            value[(0,) * value.dim()] = bad
            return value

        args, kwargs = sample.make(torch.float32, device)
        args, kwargs = tuple(map(spoil, args)), {k: spoil(v) for k, v in kwargs.items()}
        if not inputs_of(args, kwargs):
            return
        ours, plain = (
            tensors_of(op.function(*args, **kwargs)),
            tensors_of(op.reference(*args, **kwargs)),
        )
        for a, b in zip(ours, plain, strict=True):
            added = a.isnan() & ~b.isnan()
            lost = b.isnan() & ~a.isnan() if math.isnan(bad) else torch.zeros_like(added)
            assert not added.any(), f"{op.name}, {sample.label}: {bad} gives NaN"
            assert not lost.any(), f"{op.name}, {sample.label}: NaN vanishes"
