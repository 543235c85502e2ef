"""A tensor that is computed when it is known what follows: what a norm gives to the activation after it.

Where a module's `forward` is somebody's own, nothing but its run tells what becomes of a norm's result. So the norm
gives a `Pending`, and the first function that takes it decides: an activation is computed together with the norm by one
op, anything else gets what the norm alone gives, and so do a second function, a hook, `shape`, a print.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

# (activation, slope, whether this is not the first time): what comes of it.
Compute = Callable[[str, float, bool], Tensor]


class Pending(Tensor):
    """`compute` says what it is, `x` and `parameters` what it is made of; `waiting` holds those nobody has used."""

    _x: Tensor
    _waiting: dict[int, Pending]
    _compute: Compute
    _value: Tensor | None
    _used: bool
    _grads: bool
    _seen: int | None

    @staticmethod
    def of(
        x: Tensor, parameters: list[Tensor], compute: Compute, waiting: dict[int, Pending]
    ) -> Pending:
        grad = torch.is_grad_enabled()
        if grad and any(t.requires_grad for t in (x, *parameters)):
            pending = _Gradient.apply(x, *parameters)
        else:
            pending = _empty(x)
        pending._x, pending._compute, pending._waiting = x, compute, waiting
        pending._value, pending._used, pending._grads = None, False, grad
        pending._seen = None if x.is_inference() else x._version
        waiting[id(pending)] = pending
        return pending

    def followed_by(self, act: str, slope: float, in_place: bool) -> Tensor | None:
        """What the activation gives, in one op; None if that is too late or not to be done."""
        if self._value is not None or self._used or torch.is_autocast_enabled(self._x.device.type):
            return None
        y = self._computed(act, slope)
        if in_place:
            self._value = y
        return y

    def value(self) -> Tensor:
        """What there would have been in the first place."""
        if self._value is None:
            with (
                torch.set_grad_enabled(self._grads),
                torch.autocast(self._x.device.type, enabled=False),
            ):
                self._value = self._computed("linear", 0.0)
        return self._value

    def _computed(self, act: str, slope: float) -> Tensor:
        x = self._x
        if self._seen is not None and x._version != self._seen:
            raise RuntimeError(
                "the input of an accelerated norm was changed in place before its result was used: "
                "undo the acceleration of this model with report.revert()"
            )
        again, self._used = self._used, True
        self._waiting.pop(id(self), None)
        return self._compute(act, slope, again)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = _activation(func, args, kwargs)
        if found is not None and type(args[0]) is Pending:
            y = args[0].followed_by(*found)
            if y is not None:
                return y
        args, kwargs = tree_map_only(Pending, Pending.value, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Reached only past `__torch_function__`, where autograd has missed the value."""
        raise RuntimeError(
            f"{func} took the result of an accelerated norm in a way that cannot be seen: "
            "undo the acceleration of this model with report.revert()"
        )


def _empty(x: Tensor) -> Any:
    return Tensor._make_wrapper_subclass(Pending, x.shape, dtype=x.dtype, device=x.device)


class _Gradient(torch.autograd.Function):
    """What autograd sees where a `Pending` itself is taken: by a `torch.autograd.Function` that nobody expected."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Any:
        ctx.inputs = (x, *parameters)
        ctx.pending = pending = _empty(x)
        return pending

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        needed = [t for t in ctx.inputs if t.requires_grad]
        found = torch.autograd.grad(ctx.pending.value(), needed, g, retain_graph=True)
        by_id = {id(t): d for t, d in zip(needed, found)}
        return tuple(by_id.get(id(t)) for t in ctx.inputs)


def _plain(act: str, slope: float = 0.0) -> Callable[..., tuple[str, float, bool]]:
    def read(x: Any, inplace: bool = False) -> tuple[str, float, bool]:
        return act, slope, inplace

    return read


def _leaky(
    x: Any, negative_slope: float = 0.01, inplace: bool = False
) -> tuple[str, float, bool] | None:
    return ("leaky_relu", float(negative_slope), inplace) if negative_slope >= 0 else None


def _gelu(x: Any, *, approximate: str = "none") -> tuple[str, float, bool] | None:
    return ("gelu", 0.0, False) if approximate == "none" else None


def _softplus(x: Any, beta: float = 1, threshold: float = 20) -> tuple[str, float, bool] | None:
    return ("softplus", 0.0, False) if (beta, threshold) == (1, 20) else None


# The functions that are activations, and what reads their arguments.
ACTIVATIONS: dict[Any, Callable[..., tuple[str, float, bool] | None]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _plain("relu")),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh), _plain("tanh")),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid), _plain("sigmoid")),
    **dict.fromkeys((torch.relu_, F.relu_, Tensor.relu_), lambda x: ("relu", 0.0, True)),
    F.silu: _plain("silu"),
    F.leaky_relu: _leaky,
    F.gelu: _gelu,
    F.softplus: _softplus,
}


def _activation(func: Any, args: Any, kwargs: Any) -> tuple[str, float, bool] | None:
    try:
        read = ACTIVATIONS.get(func)
        return read(*args, **kwargs) if read else None
    except TypeError:  # arguments of which nothing is known here
        return None
