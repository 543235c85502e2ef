"""Effective weights of a layer, and the way of their gradients to the parameters they are made of.

A weight under a parametrisation (spectral norm, weight norm, equalised learning rate, arithmetic in
`forward`) is a leaf for the layers; its gradient is pulled through the parametrisation once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Pull = Callable[[Tensor], list[tuple[nn.Parameter, Tensor]]]


@dataclass(frozen=True, eq=False)
class Source:
    """An effective weight."""

    def parameters(self) -> list[Tensor]:
        """What it is made of, buffers included."""
        raise NotImplementedError

    def value(self) -> tuple[Tensor, Pull]:
        """The weight of this step, and what takes a gradient of it to the parameters."""
        raise NotImplementedError

    def wanted(self) -> bool:
        """Whether a parameter of it needs a gradient."""
        return any(isinstance(p, nn.Parameter) and p.requires_grad for p in self.parameters())


@dataclass(frozen=True, eq=False)
class Parameter(Source):
    """A parameter or buffer itself."""

    module: nn.Module
    name: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameter) and self.tensor() is other.tensor()

    def __hash__(self) -> int:
        return id(self.module)

    def tensor(self) -> Tensor:
        return getattr(self.module, self.name)

    def parameters(self) -> list[Tensor]:
        return [self.tensor()]

    def value(self) -> tuple[Tensor, Pull]:
        tensor = self.tensor()
        return tensor, lambda gradient: [(tensor, gradient)]  # type: ignore[list-item]


@dataclass(frozen=True, eq=False)
class Expression(Source):
    """A function of parameters."""

    call: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def _leaves(self) -> list[Parameter]:
        found: list[Parameter] = []
        for a in (*self.args, *self.kwargs.values()):
            if isinstance(a, Expression):
                found += a._leaves()
            elif isinstance(a, Parameter):
                found.append(a)
        return found

    def _evaluate(self, leaves: list[Tensor]) -> Tensor:
        """With the leaves in order; takes them off the front of the list."""

        def get(a: Any) -> Any:
            if isinstance(a, Expression):
                return a._evaluate(leaves)
            return leaves.pop(0) if isinstance(a, Parameter) else a

        args = [get(a) for a in self.args]
        return self.call(*args, **{name: get(a) for name, a in self.kwargs.items()})

    def parameters(self) -> list[Tensor]:
        return [leaf.tensor() for leaf in self._leaves()]

    def value(self) -> tuple[Tensor, Pull]:
        leaves = self.parameters()
        value, pull = torch.func.vjp(  # type: ignore[misc]
            lambda *given: self._evaluate([*given]), *leaves
        )
        return value, lambda gradient: list(zip(leaves, pull(gradient), strict=True))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Spectral(Source):
    """W / sigma with sigma = u' W v, by torch's spectral norm of either style.

    u and v are constants of the gradient: dL/dW = (G - <G, W / sigma> u v') / sigma. In training
    mode they take their power iteration once a step.
    """

    module: nn.Module
    name: str
    hook: Any  # torch.nn.utils.spectral_norm's; None: torch.nn.utils.parametrizations'

    def parameters(self) -> list[Tensor]:
        if self.hook is None:
            return [self.module.parametrizations[self.name].original]  # type: ignore[index, union-attr]
        return [getattr(self.module, self.name + "_orig")]

    def value(self) -> tuple[Tensor, Pull]:
        (weight,) = self.parameters()
        module: Any = self.module
        norm: Any = module.parametrizations[self.name][0] if self.hook is None else self.hook
        dim = norm.dim
        order = [dim, *(k for k in range(weight.dim()) if k != dim)]
        matrix = weight.permute(order).flatten(1)
        if self.hook is None:
            u, v, training = norm._u, norm._v, norm.training
        else:
            u, v = getattr(module, self.name + "_u"), getattr(module, self.name + "_v")
            training = module.training
        if training:
            for _ in range(norm.n_power_iterations):
                # The newer style begins with u.
                if self.hook is None:
                    u.copy_(_unit(matrix @ v, norm.eps))
                v.copy_(_unit(matrix.t() @ u, norm.eps))
                if self.hook is not None:
                    u.copy_(_unit(matrix @ v, norm.eps))
        u, v = u.clone(), v.clone()
        sigma = u @ (matrix @ v)
        effective = weight / sigma

        def pull(gradient: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
            outer = torch.outer(u, v).reshape([weight.size(k) for k in order])
            outer = outer.permute([order.index(k) for k in range(weight.dim())])
            share = (gradient * effective).sum()
            return [(weight, (gradient - share * outer) / sigma)]  # type: ignore[list-item]

        return effective, pull


def _unit(x: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.normalize(x, dim=0, eps=eps)
