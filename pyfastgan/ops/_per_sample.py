"""Ops that turn several tensors of one shape into one number a sample: an elementwise loss, summed."""

from __future__ import annotations

from collections.abc import Callable
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
    check_like,
    forward_mode,
    fresh,
    fresh_like,
    needs_grad,
    under_autocast,
)
from ._registry import Kernel


class PerSample:
    """The kernels and the autograd function of such an op.

    Args:
        name: of the op and of its CPU kernel; the backward's is `<name>_backward`.
        inputs: the names of the tensors, (N, ...) all of one shape and dtype.
        loss: of each element, from the inputs in the type that is computed in.
        slopes: its derivatives by each input.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[str, ...],
        loss: Callable[..., Tensor],
        slopes: Callable[..., tuple[Tensor, ...]],
    ) -> None:
        self.name, self.inputs, self._loss, self._slopes = name, inputs, loss, slopes
        tensors = ", ".join(f"Tensor {x}" for x in inputs)
        self.forward = Kernel(
            f"{name}({tensors}) -> Tensor",
            reference=self.reference,
            fake=_fake,
            cpu=self._cpu,
            triton=f"per_sample:{name}",
        )
        # Bit k of `wanted` asks for the gradient to input k; it is empty without.
        results = ", ".join("Tensor" for _ in inputs)
        self.backward = Kernel(
            f"{name}_backward(Tensor dnll, {tensors}, int wanted) -> ({results})",
            reference=self._derivative,
            fake=_backward_fake,
            cpu=self._backward_cpu,
            triton=f"per_sample:{name}_backward",
        )
        _OPS[name] = self

    def __call__(self, *tensors: Tensor) -> Tensor:
        first = tensors[0]
        if isinstance(first, Tensor) and under_autocast(first.device):
            first, *_ = tensors = tuple([t.float() for t in tensors])
        check_float(self.inputs[0], first)
        if first.dim() < 1:
            raise ValueError(f"{self.inputs[0]} must have a dimension of samples, got a scalar")
        for k in range(1, len(tensors)):
            check_like(self.inputs[k], tensors[k], self.inputs[0], first)
        if forward_mode():
            return self.reference(*tensors)
        if needs_grad(*tensors):
            return apply(_Function, self.name, *tensors)
        return self.forward(*tensors)

    def reference(self, *tensors: Tensor) -> Tensor:
        """In plain PyTorch, differentiable by autograd any number of times."""
        loss = self._loss(*(t.to(accumulation(t.dtype)) for t in tensors))
        return loss[..., None].flatten(1).sum(1)

    def _derivative(self, dnll: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, wanted = arguments
        first = tensors[0]
        g = dnll.reshape(-1, *[1] * (first.dim() - 1))
        slopes = self._slopes(*(t.to(accumulation(t.dtype)) for t in tensors))
        return tuple(
            (g * slope).to(first.dtype).contiguous() if wanted >> k & 1 else dnll.new_empty(0)
            for k, slope in enumerate(slopes)
        )

    def _cpu(self, *tensors: Tensor) -> Tensor:
        tensors = tuple([t.contiguous() for t in tensors])
        nll = _fake(*tensors)
        getattr(_backends.native("_cpu"), self.name)(
            *[t.data_ptr() for t in tensors], nll.data_ptr(), *_launch_arguments(tensors[0])
        )
        return nll

    def _backward_cpu(self, dnll: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        *tensors, wanted = arguments
        dnll, tensors = dnll.contiguous(), [t.contiguous() for t in tensors]
        gradients = [fresh_like(t) if wanted >> k & 1 else None for k, t in enumerate(tensors)]
        getattr(_backends.native("_cpu"), self.backward.name)(
            dnll.data_ptr(),
            *[t.data_ptr() for t in tensors],
            *[address(g) for g in gradients],
            *_launch_arguments(tensors[0]),
        )
        return tuple(gradients)


def _launch_arguments(x: Tensor) -> tuple[int, ...]:
    rows = x.size(0)
    elements = x.numel() // rows if rows else 0
    return TYPE_NUMBER[x.dtype], rows, elements, torch.get_num_threads()


def _fake(*tensors: Tensor) -> Tensor:
    first = tensors[0]
    return first.new_empty(first.size(0), dtype=accumulation(first.dtype))


def _backward_fake(dnll: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, wanted = arguments
    return tuple(
        fresh(t, t.shape) if wanted >> k & 1 else dnll.new_empty(0) for k, t in enumerate(tensors)
    )


# By name, where torch.compile finds them; it does not follow a closure.
_OPS: dict[str, PerSample] = {}


class _Function(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, *tensors: Tensor) -> Tensor:
        return _OPS[name].forward(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dnll: Tensor) -> tuple[Tensor | None, ...]:
        tensors, op = ctx.saved_tensors, _OPS[ctx.name]
        wanted = sum(bool(want) << k for k, want in enumerate(ctx.needs_input_grad[1:]))
        run = op._derivative if needs_grad(dnll, *tensors) else op.backward
        gradients = run(dnll, *tensors, wanted)
        return None, *(g if wanted >> k & 1 else None for k, g in enumerate(gradients))
