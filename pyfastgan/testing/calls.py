"""Sample calls, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfastgan.ops._backends import missing, refuses_device
from pyfastgan.ops._registry import Op, Sample


def backends(op: Op, device: str = "cpu") -> list[str]:
    """The backends that can serve an op on tensors of `device` on this machine."""
    kernels = op.kernels
    found = set.intersection(*(set(k.backends()) for k in kernels)) if kernels else {"reference"}
    place = torch.device(device)
    return sorted(b for b in found if missing(b) is None and refuses_device(b, place) is None)


def tensors_of(values: Any) -> tuple[Tensor, ...]:
    values = values if isinstance(values, tuple | list) else (values,)
    return tuple(v for v in values if isinstance(v, Tensor))


def inputs_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
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
    outputs = tensors_of(call())
    if orders == 0 or not inputs:
        return list(outputs)
    # Integers, such as an index, have no derivative, nor has noise that an op makes.
    smooth = tuple(y for y in outputs if y.requires_grad)
    cotangents = tuple(_numbers(y, 1000 + k, dtype).requires_grad_() for k, y in enumerate(smooth))
    first = torch.autograd.grad(smooth, inputs, cotangents, create_graph=orders > 1)
    if orders == 1:
        return [*outputs, *first]
    seconds = tuple(_numbers(g, 2000 + k, dtype) for k, g in enumerate(first))
    second = torch.autograd.grad(first, (*cotangents, *inputs), seconds, allow_unused=True)
    return [*outputs, *first, *second]


def run(
    function: Callable[..., Any],
    op: Op,
    sample: Sample,
    dtype: torch.dtype,
    device: str = "cpu",
    orders: int | None = None,
) -> list[Tensor | None]:
    """Outputs and derivatives of a sample call, as many orders as the op has, or fewer."""
    args, kwargs = sample.make(dtype, device)
    inputs = inputs_of(args, kwargs)
    if op.orders:
        for x in inputs:
            x.requires_grad_()
    orders = op.orders if orders is None else orders
    return derivatives(lambda: function(*args, **kwargs), inputs, orders, dtype)


def assert_same(a: list[Tensor | None], b: list[Tensor | None], what: str) -> None:
    assert len(a) == len(b)
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        same = x is y if x is None or y is None else torch.equal(x, y)
        assert same, f"{what}: result {k} differs"
