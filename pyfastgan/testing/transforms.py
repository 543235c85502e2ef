"""Checks under what transforms a call: autograd, `torch.compile` and `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyfastgan.ops._registry import Op, Sample, ops
from pyfastgan.testing.calls import assert_same, derivatives, inputs_of, run, tensors_of


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
    inputs = inputs_of(args, kwargs)
    if orders:
        for x in inputs:
            x.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(op.function, fullgraph=True, backend=backend)
    eager = derivatives(lambda: op.function(*args, **kwargs), inputs, orders, torch.float32)
    graph = derivatives(lambda: compiled(*args, **kwargs), inputs, orders, torch.float32)
    assert_same(eager, graph, f"{op.name}, {sample.label}: compiled")


def check_backward_twice(op: Op, sample: Sample, device: str = "cpu") -> None:
    """A graph kept with `retain_graph` gives the same gradients again, also for a cotangent without
    memory of its own."""
    args, kwargs = sample.make(torch.float32, device)
    inputs = inputs_of(args, kwargs)
    if not op.orders or not inputs:
        return
    for x in inputs:
        x.requires_grad_()
    outputs = tuple(y for y in tensors_of(op.function(*args, **kwargs)) if y.requires_grad)
    ones = tuple(torch.ones((), device=device, dtype=y.dtype).expand(y.shape) for y in outputs)
    first = torch.autograd.grad(outputs, inputs, ones, retain_graph=True)
    second = torch.autograd.grad(outputs, inputs, ones)
    assert_same(list(first), list(second), f"{op.name}, {sample.label}: backward twice")


def check_functional(op: Op, sample: Sample, device: str = "cpu") -> None:
    """`torch.func.grad`, `vmap` of it and `jvp` agree with the reference."""
    args, kwargs = sample.make(torch.float64, device)
    inputs = inputs_of(args, kwargs)
    if not op.orders or not inputs or inputs[0].numel() == 0:
        return
    x, rest = args[0], args[1:]

    def total(function: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda t: sum((y * y).sum() for y in tensors_of(function(t, *rest, **kwargs)))  # type: ignore[return-value]

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
    inputs = inputs_of(args, kwargs)
    if not op.orders or not inputs or inputs[0].numel() == 0:
        return

    def highest(function: Callable[..., Any]) -> Tensor | None:
        x = inputs[0].detach().requires_grad_()
        y: Any = sum((t**3).sum() for t in tensors_of(function(x, *args[1:], **kwargs)))
        for _ in range(op.orders):
            (y,) = torch.autograd.grad(y, x, create_graph=True)
            y = (y**2).sum()
        return torch.autograd.grad(y, x)[0]

    try:
        ours = highest(op.function)
    except RuntimeError as error:
        # The op itself, or one that it is made of.
        named = any(name in str(error) for name in ops())
        assert named, f"{op.name}: the error names no op: {error}"
        return
    torch.testing.assert_close(ours, highest(op.reference), rtol=1e-6, atol=1e-6)
