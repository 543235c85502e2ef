"""How a plan of a critic grows: the values its layers take, and where their weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pyfastgan.gan.critic_plan import Plan, Unsupported
from pyfastgan.gan.linearised import Layer
from pyfastgan.gan.linearised_maps import Broadcast
from pyfastgan.gan.sources import Expression, Parameter, Source, Spectral

_OLD_HOOKS = (SpectralNorm, WeightNorm)


@dataclass
class Value:
    """What a proxy stands for: a value of the plan, or a function of weights alone (`source`)."""

    meta: Tensor
    number: int | None = None
    source: Source | None = None
    of_samples: bool = False  # depends on the samples, not on the condition or weights alone


class Builder:
    """Adds layers to a plan: what the rules work with.

    Args:
        batch: The number of samples.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.plan = Plan()
        self.known: dict[Any, int] = {}
        self.viewed: set[int] = set()

    def weight(self, module: nn.Module, name: str) -> int | None:
        """The number of a module's effective weight; None if it has none."""
        # To look at a parametrised weight is to compute it, and may take a power iteration.
        if not parametrize.is_parametrized(module, name) and getattr(module, name, None) is None:
            return None
        key = (id(module), name)
        if key not in self.known:
            self.known[key] = self.source(source_of(module, name))
        return self.known[key]

    def number(self, weight: Value) -> int:
        assert weight.source is not None
        return self.source(weight.source)

    def source(self, source: Source) -> int:
        for k, other in enumerate(self.plan.sources):
            if other == source:
                return k
        self.plan.sources.append(source)
        return len(self.plan.sources) - 1

    def emit(
        self,
        kind: type[Layer],
        name: str,
        inputs: tuple[Value, ...],
        meta: Tensor,
        *rest: Any,
        **more: Any,
    ) -> Value:
        numbers = tuple(self.value(name, x) for x in inputs)
        number = len(self.plan.of_samples)
        of_samples = any(x.of_samples for x in inputs) and kind is not Broadcast
        self.plan.of_samples.append(of_samples)
        layer = kind(name, numbers, number, *rest, **more)
        if layer.aliases:
            self.viewed |= {*numbers, number}
        self.plan.layers.append(layer)
        return Value(meta, number, of_samples=of_samples)

    def value(self, name: str, x: Any) -> int:
        if not isinstance(x, Value) or (x.number is None and x.source is None):
            raise Unsupported("is applied to something that is not a tensor")
        if x.number is None:
            raise Unsupported("mixes weights and samples in a way that cannot be taken apart")
        return x.number

    def sample_shape(self, meta: Tensor) -> tuple[int, ...]:
        if meta.dim() == 0 or meta.size(0) != self.batch:
            raise Unsupported("mixes samples")
        return tuple(meta.shape[1:])


def check_hooks(m: nn.Module, name: str) -> None:
    """Refuses a module with hooks other than those of old weight and spectral norm."""
    hooks = [h for h in m._forward_pre_hooks.values() if not isinstance(h, _OLD_HOOKS)]
    hooks += [*m._forward_hooks.values(), *m._backward_hooks.values()]
    if hooks or m._backward_pre_hooks:
        raise Unsupported(f"{plain_name(name)} ({type_name(m)}) has hooks, which would not run")


def source_of(module: nn.Module, name: str) -> Source:
    """What module.name is made of."""
    if parametrize.is_parametrized(module, name):
        chain: Any = module.parametrizations[name]  # type: ignore[index]
        if len(chain) == 1 and type(chain[0]) is _SpectralNorm:
            return Spectral(module, name, None)
        if any(True for _ in chain.buffers()):
            kinds = ", ".join(type_name(p) for p in chain)
            raise Unsupported(f"has a parametrisation with state ({kinds})")
        originals = (
            ["original"] if chain.is_tensor else [f"original{k}" for k in range(chain.ntensors)]
        )
        return Expression(_parametrised(chain), tuple(Parameter(chain, k) for k in originals), {})
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _OLD_HOOKS) and hook.name == name:
            if isinstance(hook, SpectralNorm):
                return Spectral(module, name, hook)
            parts = (Parameter(module, name + "_v"), Parameter(module, name + "_g"), hook.dim)
            return Expression(torch._weight_norm, parts, {})
    return Parameter(module, name)


def _parametrised(chain: Any) -> Callable[..., Tensor]:
    def effective(*originals: Tensor) -> Tensor:
        first, *rest = chain
        x = first(*originals)
        for step in rest:
            x = step(x)
        return x

    return effective


def plain_name(name: str) -> str:
    """The path of a module below the critic."""
    return name.removeprefix("critic").removeprefix(".") or "the critic"


def type_name(module: nn.Module) -> str:
    return type(module).__name__
