"""Reads a critic with `torch.fx` and lists its layers as those of `linearised`, or says why not.

The critic's own `forward` runs once on proxies that know their shapes, so that checks and arithmetic
on shapes work as usual; no weight and no buffer is touched. What the layers need of a critic:
one number a sample, nothing that mixes samples, and operations of the tables in `plan_modules` and
`plan_functions`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyfastgan import ops
from pyfastgan.gan.critic_plan import Plan, Unsupported
from pyfastgan.gan.plan_builder import Builder, Value, check_hooks, plain_name, type_name
from pyfastgan.gan.plan_functions import FUNCTIONS, LABELS
from pyfastgan.gan.plan_modules import CONVOLUTIONS, MODULES, leaf_kind
from pyfastgan.gan.sources import Expression, Parameter

# Questions about a tensor that its shape, dtype or layout answers.
_CHECKS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "is_floating_point",
    "is_complex",
    "get_device",
}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


class _Proxy(fx.Proxy):
    """A proxy that knows the shape, dtype and device of what it stands for."""

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "ndim", "layout", "is_sparse", "is_quantized", "names"):
            return getattr(self.node.meta["value"].meta, name)
        if name == "device":
            return self.tracer.device  # type: ignore[attr-defined]
        if name == "is_cuda":
            return self.tracer.device.type == "cuda"  # type: ignore[attr-defined]
        if name == "requires_grad":
            return True
        return super().__getattr__(name)

    # fx takes `x += y` for `x = x + y`, and other names of x would keep the old value.
    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __len__(self) -> int:
        return len(self.node.meta["value"].meta)


class _Reader(fx.Tracer):
    def __init__(self, given: list[Value], device: torch.device, batch: int) -> None:
        super().__init__(autowrap_modules=(math, ops))  # type: ignore[arg-type]
        self.proxy_buffer_attributes = True
        self.given, self.device = given, device
        self.builder = Builder(batch)
        self.reading = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        check_hooks(m, module_qualified_name)
        kind = leaf_kind(m)
        return kind is not None and (kind not in CONVOLUTIONS or m.padding_mode == "zeros")

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # The rules below want weights themselves, the critic's code proxies of them.
        return attr_val if self.reading else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any
    ) -> Any:
        self.reading = True
        try:
            found = self.read(kind, target, args, kwargs)
        finally:
            self.reading = False
        if not isinstance(found, Value):
            return found
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **options)
        proxy.node.meta["value"] = found
        return proxy

    @property
    def place(self) -> str:
        return plain_name(self.scope.module_path) or "the critic"

    def read(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.given[int(target == "condition")]
        if kind == "get_attr":
            return self.attribute(target)
        if kind == "output":
            return None
        args, kwargs = fx.node.map_aggregate((args, kwargs), _value)
        if kind == "call_module":
            module = self.root.get_submodule(target)
            name = plain_name(target)
            rule = MODULES[leaf_kind(module)]
            try:
                return rule(self.builder, name, module, *args, **kwargs)
            except Unsupported as reason:
                raise Unsupported(f"{name} ({type_name(module)}) {reason}") from None
        if kind == "call_method":
            return self.function(
                target, args, kwargs, lambda x, *a, **k: getattr(x, target)(*a, **k)
            )
        return self.function(target, args, kwargs, target)

    def function(self, target: Any, args: Any, kwargs: Any, call: Callable[..., Any]) -> Any:
        label = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        name = f"{self.place}: {label}"
        metas = fx.node.map_aggregate(
            (args, kwargs), lambda v: v.meta if isinstance(v, Value) else v
        )
        if label in _CHECKS:
            return call(*metas[0], **metas[1])
        values = [v for v in _flat((args, kwargs)) if isinstance(v, Value)]
        if values and all(v.source is not None for v in values):
            changes = label.endswith("_") and not label.startswith("_")
            if changes or "out" in kwargs or target in _IN_PLACE:
                raise Unsupported(f"{name} changes a weight in place")
            meta = call(*metas[0], **metas[1])
            if not isinstance(meta, Tensor):
                return meta
            tree = fx.node.map_aggregate(
                (args, kwargs), lambda v: v.source if isinstance(v, Value) else v
            )
            return Value(meta, source=Expression(call, *tree))
        rule = FUNCTIONS.get(LABELS.get(label, label))
        if rule is None:
            raise Unsupported(f"{name} is not an operation that can be taken apart")
        try:
            return rule(self.builder, name, *args, **kwargs)
        except Unsupported as reason:
            raise Unsupported(f"{name} {reason}") from None
        except TypeError:
            raise Unsupported(f"{name} is called in a way that cannot be taken apart") from None

    def attribute(self, target: str) -> Value:
        path, _, name = target.rpartition(".")
        module = self.root.get_submodule(path)
        tensor = getattr(module, name)
        return Value(_meta(tensor), source=Parameter(module, name))


def read_critic(critic: nn.Module, x: Tensor, condition: Tensor | None) -> Plan:
    """The plan of a critic for samples like x; only shape, dtype and device are looked at.

    Raises:
        Unsupported: The critic cannot be taken apart; the message names the layer.
    """
    # Two sizes of the batch, so that nothing that belongs to one size is taken for granted.
    plans = [_read(critic, x, condition, batch) for batch in (13, 17)]
    if plans[0].layers != plans[1].layers or plans[0].output != plans[1].output:
        raise Unsupported("the critic does something else for another size of the batch")
    plans[0].finish()
    return plans[0]


class _Called(nn.Module):
    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic


class _One(_Called):
    def forward(self, x: Any) -> Any:
        return self.critic(x)


class _Two(_Called):
    def forward(self, x: Any, condition: Any) -> Any:
        return self.critic(x, condition)


def _read(critic: nn.Module, x: Tensor, condition: Tensor | None, batch: int) -> Plan:
    given = [Value(_meta(x, batch), 0, of_samples=True)]
    if condition is not None:
        given.append(Value(_meta(condition, batch), 1))
    reader = _Reader(given, x.device, batch)
    root = _One(critic) if condition is None else _Two(critic)
    try:
        graph = reader.trace(root)
    except Unsupported:
        raise
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise Unsupported(
            f"{reader.place} cannot be traced by torch.fx ({type(error).__name__}: {text})"
        ) from error
    out = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(out, fx.Node) or out.meta["value"].number is None:
        raise Unsupported("the critic returns something else than a tensor that depends on samples")
    value = out.meta["value"]
    if not value.of_samples:
        raise Unsupported("the critic's output does not depend on the samples")
    shape = tuple(value.meta.shape)
    if shape not in ((batch,), (batch, 1)) and not (len(shape) == 4 and shape[:2] == (batch, 1)):
        raise Unsupported("the critic returns another shape than (N,), (N, 1) or (N, 1, h, w)")
    reader.builder.plan.output = value.number
    return reader.builder.plan


def _meta(x: Tensor, batch: int | None = None) -> Tensor:
    shape = x.shape if batch is None else (batch, *x.shape[1:])
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _value(x: Any) -> Any:
    return x.node.meta["value"] if isinstance(x, fx.Proxy) else x


def _flat(x: Any) -> list[Any]:
    if isinstance(x, (list, tuple)):
        return [v for part in x for v in _flat(part)]
    if isinstance(x, dict):
        return _flat(list(x.values()))
    return [x]
