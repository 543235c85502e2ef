"""The contract that every op keeps, as checks over what the registry says of it.

`check_op(op)` runs them all; the test suite runs them one by one for every registered op, sample,
dtype and backend. Each check raises AssertionError and says what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyfastgan.ops._backends import missing, refuses_device, use_backend
from pyfastgan.ops._registry import FLOATS, BadCall, Op, Sample

# Finite differences cost a call an element and more.
_SMALL = 150


def backends(op: Op, device: str = "cpu") -> list[str]:
    """The backends that can serve an op on tensors of `device` on this machine."""
    kernels = op.kernels
    found = set.intersection(*(set(k.backends()) for k in kernels)) if kernels else {"reference"}
    place = torch.device(device)
    return sorted(b for b in found if missing(b) is None and refuses_device(b, place) is None)


def _tensors(values: Any) -> tuple[Tensor, ...]:
    values = values if isinstance(values, tuple | list) else (values,)
    return tuple(v for v in values if isinstance(v, Tensor))


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The floating-point tensors of a call: those a derivative can be taken by."""
    return tuple(
        v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()
    )


def _numbers(like: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers of `like`'s shape and dtype that `dtype` represents."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).to(device=like.device, dtype=like.dtype)


def derivatives(
    call: Callable[[], Any], inputs: tuple[Tensor, ...], orders: int, dtype: torch.dtype
) -> list[Tensor | None]:
    """A call's outputs, then its derivatives up to `orders`, contracted with fixed cotangents."""
    outputs = _tensors(call())
    if orders == 0 or not inputs:
        return list(outputs)
    # Integers, such as an index, have no derivative.
    smooth = tuple(y for y in outputs if y.is_floating_point())
    cotangents = tuple(_numbers(y, 1000 + k, dtype).requires_grad_() for k, y in enumerate(smooth))
    first = torch.autograd.grad(smooth, inputs, cotangents, create_graph=orders > 1)
    if orders == 1:
        return [*outputs, *first]
    seconds = tuple(_numbers(g, 2000 + k, dtype) for k, g in enumerate(first))
    second = torch.autograd.grad(first, (*cotangents, *inputs), seconds, allow_unused=True)
    return [*outputs, *first, *second]


def run(
    function: Callable[..., Any], op: Op, sample: Sample, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor | None]:
    """Outputs and derivatives of a sample call."""
    args, kwargs = sample.make(dtype, device)
    inputs = _inputs(args, kwargs)
    if op.orders:
        for x in inputs:
            x.requires_grad_()
    return derivatives(lambda: function(*args, **kwargs), inputs, op.orders, dtype)


def _run_exact(op: Op, sample: Sample, dtype: torch.dtype, device: str) -> list[Tensor | None]:
    """The reference in float64 on the very numbers that `dtype` holds."""
    args, kwargs = sample.make(dtype, device)

    def widen(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = tuple(map(widen, args)), {k: widen(v) for k, v in kwargs.items()}
    if sample.takes_dtype:
        kwargs["dtype"] = torch.float64
    inputs = _inputs(args, kwargs)
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
    inputs = _inputs(args, kwargs)
    if not op.orders or not inputs or sum(x.numel() for x in inputs) > _SMALL:
        return None
    for x in inputs:
        x.requires_grad_()

    def call(*tensors: Tensor) -> Any:
        new = iter(tensors)

        def put(value: Any) -> Any:
            return next(new) if isinstance(value, Tensor) and value.is_floating_point() else value

        return op.function(*map(put, args), **{k: put(v) for k, v in kwargs.items()})

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


class _Calls(TorchDispatchMode):
    """Notes every call of a pyfastgan operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "pyfastgan":
            self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


def check_operators(op: Op, sample: Sample, device: str = "cpu") -> None:
    """`torch.library.opcheck` of every operator that a call and its derivatives reach."""
    with _Calls() as calls:
        run(op.function, op, sample, torch.float32, device)
    assert calls.seen, f"{op.name} calls no registered operator"
    for operator, args in calls.seen:
        plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        torch.library.opcheck(
            operator,
            plain,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def check_compiles(op: Op, sample: Sample, device: str = "cpu", backend: str = "aot_eager") -> None:
    """`torch.compile(fullgraph=True)`, forward and backward, gives the bits of the eager call."""
    orders = min(op.orders, 1)  # torch compiles no second order
    args, kwargs = sample.make(torch.float32, device)
    inputs = _inputs(args, kwargs)
    if orders:
        for x in inputs:
            x.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(op.function, fullgraph=True, backend=backend)
    eager = derivatives(lambda: op.function(*args, **kwargs), inputs, orders, torch.float32)
    graph = derivatives(lambda: compiled(*args, **kwargs), inputs, orders, torch.float32)
    _assert_same(eager, graph, f"{op.name}, {sample.label}: compiled")


def _assert_same(a: list[Tensor | None], b: list[Tensor | None], what: str) -> None:
    assert len(a) == len(b)
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        same = x is y if x is None or y is None else torch.equal(x, y)
        assert same, f"{what}: result {k} differs"


def check_same_bits(op: Op, sample: Sample, dtype: torch.dtype, device: str = "cpu") -> None:
    """The same call gives the same bits again, on one thread and on several, and leaves nothing
    uninitialised."""
    first = run(op.function, op, sample, dtype, device)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = run(op.function, op, sample, dtype, device)
            _assert_same(first, again, f"{op.name}, {sample.label}, {dtype}, {count} threads")
    finally:
        torch.set_num_threads(threads)
    with _uninitialised_memory_is_nan():
        again = run(op.function, op, sample, dtype, device)
        _assert_same(first, again, f"{op.name}, {sample.label}, {dtype}, NaN in new memory")


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
    expected = _tensors(op.function(*args, **kwargs))

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
        for a, b in zip(_tensors(moved), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def check_backward_twice(op: Op, sample: Sample, device: str = "cpu") -> None:
    """A graph kept with `retain_graph` gives the same gradients again, also for a cotangent without
    memory of its own."""
    args, kwargs = sample.make(torch.float32, device)
    inputs = _inputs(args, kwargs)
    if not op.orders or not inputs:
        return
    for x in inputs:
        x.requires_grad_()
    outputs = tuple(y for y in _tensors(op.function(*args, **kwargs)) if y.is_floating_point())
    ones = tuple(torch.ones((), device=device, dtype=y.dtype).expand(y.shape) for y in outputs)
    first = torch.autograd.grad(outputs, inputs, ones, retain_graph=True)
    second = torch.autograd.grad(outputs, inputs, ones)
    _assert_same(list(first), list(second), f"{op.name}, {sample.label}: backward twice")


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
        if not _inputs(args, kwargs):
            return
        ours, plain = (
            _tensors(op.function(*args, **kwargs)),
            _tensors(op.reference(*args, **kwargs)),
        )
        for a, b in zip(ours, plain, strict=True):
            added = a.isnan() & ~b.isnan()
            lost = b.isnan() & ~a.isnan() if math.isnan(bad) else torch.zeros_like(added)
            assert not added.any(), f"{op.name}, {sample.label}: {bad} gives NaN"
            assert not lost.any(), f"{op.name}, {sample.label}: NaN vanishes"


def check_functional(op: Op, sample: Sample, device: str = "cpu") -> None:
    """`torch.func.grad`, `vmap` of it and `jvp` agree with the reference."""
    args, kwargs = sample.make(torch.float64, device)
    inputs = _inputs(args, kwargs)
    if not op.orders or not inputs or inputs[0].numel() == 0:
        return
    x, rest = args[0], args[1:]

    def total(function: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda t: sum((y * y).sum() for y in _tensors(function(t, *rest, **kwargs)))  # type: ignore[return-value]

    ours, plain = total(op.function), total(op.reference)

    def close(a: Any, b: Any) -> None:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    close(torch.func.grad(ours)(x), torch.func.grad(plain)(x))
    tangent = torch.ones_like(x)
    for a, b in zip(
        torch.func.jvp(ours, (x,), (tangent,)), torch.func.jvp(plain, (x,), (tangent,)), strict=True
    ):
        close(a, b)
    stack = torch.stack((x, 2 * x))
    per_item = torch.func.vmap(torch.func.grad(ours))(stack)
    close(per_item, torch.stack([torch.func.grad(plain)(t) for t in stack]))


def check_highest_order(op: Op, sample: Sample, device: str = "cpu") -> None:
    """Differentiating once more than the op can raises, or is right; it never gives zeros."""
    args, kwargs = sample.make(torch.float64, device)
    inputs = _inputs(args, kwargs)
    if not op.orders or not inputs or inputs[0].numel() == 0:
        return

    def highest(function: Callable[..., Any]) -> Tensor | None:
        x = inputs[0].detach().requires_grad_()
        y: Any = sum((t**3).sum() for t in _tensors(function(x, *args[1:], **kwargs)))
        for _ in range(op.orders):
            (y,) = torch.autograd.grad(y, x, create_graph=True)
            y = (y**2).sum()
        return torch.autograd.grad(y, x)[0]

    try:
        ours = highest(op.function)
    except RuntimeError as error:
        assert op.name in str(error), f"the error does not name {op.name}: {error}"
        return
    torch.testing.assert_close(ours, highest(op.reference), rtol=1e-6, atol=1e-6)


def check_bad_call(op: Op, call: BadCall) -> None:
    """A call that must be refused is refused, with an error that says what was wrong."""
    import re

    try:
        op.function(*call.args, **call.kwargs)
    except call.error as error:
        assert re.search(call.says, str(error)), f"{op.name}, {call.label}: the error says {error}"
    else:
        raise AssertionError(f"{op.name}, {call.label}: no {call.error.__name__} was raised")


PER_SAMPLE = (
    check_finite_differences,
    check_operators,
    check_compiles,
    check_layouts,
    check_backward_twice,
    check_not_finite,
    check_functional,
    check_highest_order,
)
PER_DTYPE = (check_values, check_same_bits)


def check_op(op: Op, device: str = "cpu") -> None:
    """Everything, for each backend that can serve the op here."""
    for backend in backends(op, device):
        with use_backend(backend):
            for sample in op.samples:
                for check in PER_SAMPLE:
                    check(op, sample, device)
                for dtype in FLOATS:
                    for typed in PER_DTYPE:
                        typed(op, sample, dtype, device)
    for call in op.bad_calls:
        check_bad_call(op, call)
