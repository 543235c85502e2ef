"""Reads a critic with `torch.fx` and lists its layers as those of `linearised`, or says why not.

The critic's own `forward` runs once on proxies that know their shapes, so that checks and arithmetic
on shapes work as usual; no weight and no buffer is touched. What the layers need of a critic:
one number a sample, nothing that mixes samples, and operations of the tables below.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pyfastgan import ops
from pyfastgan.gan import linearised as lin
from pyfastgan.gan.sources import Expression, Parameter, Source, Spectral
from pyfastgan.nn import BiasAct, ConvBlock, ConvTransposeBlock, NormAct


class Unsupported(Exception):
    """Why a critic cannot be taken apart, beginning with the name of the layer."""


@dataclass
class Value:
    """What a proxy stands for: a value of the plan, or a function of weights alone (`source`)."""

    meta: Tensor
    number: int | None = None
    source: Source | None = None
    of_samples: bool = False  # depends on the samples, not on the condition or weights alone


@dataclass
class Plan:
    """The layers of a critic in the order of its forward pass.

    Value 0 is the samples, value 1 the condition.

    Args:
        layers: The layers.
        sources: What the effective weights are made of.
        output: The number of the critic's output, of shape (N, ...).
    """

    layers: list[lin.Layer] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    output: int = -1
    # By value: whether it depends on the samples.
    of_samples: list[bool] = field(default_factory=lambda: [True, False])
    # By value: whether the penalty can give it a cotangent of second order.
    bends: list[bool] = field(default_factory=list)
    # By value: whether the T pass may overwrite it.
    owned: list[bool] = field(default_factory=list)
    # By layer: the values that no later layer takes.
    last_use: list[list[int]] = field(default_factory=list)

    def finish(self) -> None:
        """Lets biases join the activations behind them, and finds when what is free."""
        self._join_activations()
        makers = {layer.output: layer for layer in self.layers}
        users: dict[int, list[lin.Layer]] = {}
        for layer in self.layers:
            for v in layer.inputs:
                users.setdefault(v, []).append(layer)
        for layer in self.layers:
            if not isinstance(layer, lin.Act):
                continue
            before = makers.get(layer.inputs[0])
            # A linear layer's bias is over the last dimension, the activation's over the second.
            if isinstance(before, lin.Affine) and before.bias is not None:
                fits = before.conv is not None or before.matrix
            else:
                fits = isinstance(before, lin.Bias)
            if fits and len(users[layer.inputs[0]]) == 1 and layer.inputs[0] != self.output:
                layer.bias, before.joins = before.bias, True  # type: ignore[union-attr]
        count = len(self.of_samples)
        self.bends = [False] * count
        for layer in reversed(self.layers):
            for v in layer.inputs:
                others = [u for u in layer.inputs if u != v] or [v]
                if isinstance(layer, lin.Multiply):
                    starts = any(self.of_samples[u] for u in others)
                else:
                    starts = layer.second_order and self.of_samples[v]
                self.bends[v] |= starts or self.bends[layer.output]
        self.owned = [False] * count
        for v, layer in makers.items():
            harmless = (lin.Affine, lin.Add, lin.Resample, lin.Sum)
            used = [isinstance(user, harmless) for user in users.get(v, [])]
            self.owned[v] = not layer.aliases and all(used) and v != self.output
            if isinstance(
                layer, (lin.Concatenate, lin.Multiply, lin.GroupNorm, lin.LayerNorm, lin.FixedNorm)
            ):
                self.owned[v] = False
        last = {v: k for k, layer in enumerate(self.layers) for v in layer.inputs}
        self.last_use = [[] for _ in self.layers]
        for v, k in last.items():
            self.last_use[k].append(v)

    def _join_activations(self) -> None:
        """Norms take the activation behind them, if nobody else looks at their output."""
        norms = {layer.output: layer for layer in self.layers if isinstance(layer, lin.GroupNorm)}
        uses = [v for layer in self.layers for v in layer.inputs] + [self.output]
        for layer in [layer for layer in self.layers if isinstance(layer, lin.Act)]:
            norm = norms.get(layer.inputs[0])
            plain = layer.gain == 1.0 and layer.clamp is None
            if norm is not None and plain and uses.count(norm.output) == 1:
                norm.act, norm.slope, norm.output = layer.act, layer.slope, layer.output
                self.layers.remove(layer)


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
        self.given, self.device, self.batch = given, device, batch
        self.plan = Plan()
        self.known: dict[Any, int] = {}
        self.viewed: set[int] = set()
        self.reading = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        self.check_hooks(m, module_qualified_name)
        kind = leaf_kind(m)
        return kind is not None and (kind not in _CONVOLUTIONS or m.padding_mode == "zeros")

    def check_hooks(self, m: nn.Module, name: str) -> None:
        hooks = [h for h in m._forward_pre_hooks.values() if not isinstance(h, _OLD_HOOKS)]
        hooks += [*m._forward_hooks.values(), *m._backward_hooks.values()]
        if hooks or m._backward_pre_hooks:
            raise Unsupported(f"{_plain(name)} ({_type(m)}) has hooks, which would not run")

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
        return _plain(self.scope.module_path) or "the critic"

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
            name = _plain(target)
            rule = MODULES[leaf_kind(module)]
            try:
                return rule(self, name, module, *args, **kwargs)
            except Unsupported as reason:
                raise Unsupported(f"{name} ({_type(module)}) {reason}") from None
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
        rule = FUNCTIONS.get(_LABELS.get(label, label))
        if rule is None:
            raise Unsupported(f"{name} is not an operation that can be taken apart")
        try:
            return rule(self, name, *args, **kwargs)
        except Unsupported as reason:
            raise Unsupported(f"{name} {reason}") from None
        except TypeError:
            raise Unsupported(f"{name} is called in a way that cannot be taken apart") from None

    def attribute(self, target: str) -> Value:
        path, _, name = target.rpartition(".")
        module = self.root.get_submodule(path)
        tensor = getattr(module, name)
        return Value(_meta(tensor), source=Parameter(module, name))

    # What the rules are made of.

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
        kind: type[lin.Layer],
        name: str,
        inputs: tuple[Value, ...],
        meta: Tensor,
        *rest: Any,
        **more: Any,
    ) -> Value:
        numbers = tuple(self.value(name, x) for x in inputs)
        number = len(self.plan.of_samples)
        of_samples = any(x.of_samples for x in inputs) and kind is not lin.Broadcast
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
    reader.plan.output = value.number
    return reader.plan


def _meta(x: Tensor, batch: int | None = None) -> Tensor:
    shape = x.shape if batch is None else (batch, *x.shape[1:])
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _plain(name: str) -> str:
    return name.removeprefix("critic").removeprefix(".") or "the critic"


def _type(module: nn.Module) -> str:
    return type(module).__name__


def _value(x: Any) -> Any:
    return x.node.meta["value"] if isinstance(x, fx.Proxy) else x


def _flat(x: Any) -> list[Any]:
    if isinstance(x, (list, tuple)):
        return [v for part in x for v in _flat(part)]
    if isinstance(x, dict):
        return _flat(list(x.values()))
    return [x]


def leaf_kind(m: nn.Module) -> type | None:
    """The class of the tables that m is, with the forward of that class."""
    for kind in MODULES:
        if isinstance(m, kind) and type(m).forward is kind.forward:
            same = getattr(type(m), "_conv_forward", None) is getattr(kind, "_conv_forward", None)
            return kind if same else None
    return None


def source_of(module: nn.Module, name: str) -> Source:
    """What module.name is made of."""
    if parametrize.is_parametrized(module, name):
        chain: Any = module.parametrizations[name]  # type: ignore[index]
        if len(chain) == 1 and type(chain[0]) is _SpectralNorm:
            return Spectral(module, name, None)
        if any(True for _ in chain.buffers()):
            kinds = ", ".join(_type(p) for p in chain)
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


_OLD_HOOKS = (SpectralNorm, WeightNorm)
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
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


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _lift(b: _Reader, name: str, x: Value, like: Value) -> Value:
    """A weight as a value of every sample, if it is one."""
    if x.source is None:
        return x
    dims = like.meta.dim()
    shape = (1,) * (dims - x.meta.dim()) + tuple(x.meta.shape)
    if len(shape) != dims or shape[0] != 1:
        raise Unsupported("has a weight for each sample")
    meta = torch.empty(like.meta.size(0), *shape[1:], dtype=x.meta.dtype, device="meta")
    return b.emit(lin.Broadcast, name, (like,), meta, b.source(x.source), shape[1:])


def _pair(b: _Reader, name: str, x: Value, y: Value) -> tuple[Value, Value, tuple[Any, Any]]:
    x, y = _lift(b, name, x, y), _lift(b, name, y, x)
    shapes = b.sample_shape(x.meta), b.sample_shape(y.meta)
    if len(shapes[0]) != len(shapes[1]):
        raise Unsupported("combines tensors of different dimensions")
    return x, y, shapes


def _scale(b: _Reader, name: str, x: Any, factor: float, shift: float = 0.0) -> Value:
    if factor == 1 and shift == 0:
        return x
    return b.emit(lin.Scale, name, (x,), x.meta * factor, float(factor), float(shift))


def _add(b: _Reader, name: str, x: Any, y: Any, *, alpha: float = 1.0) -> Value:
    if _number(y):
        return _scale(b, name, x, 1.0, alpha * y)
    if _number(x):
        return _scale(b, name, y, alpha, x)
    x, y, shapes = _pair(b, name, x, y)
    return b.emit(lin.Add, name, (x, y), torch.add(x.meta, y.meta), shapes, float(alpha))


def _sub(b: _Reader, name: str, x: Any, y: Any, *, alpha: float = 1.0) -> Value:
    return _add(b, name, x, y, alpha=-alpha)


def _mul(b: _Reader, name: str, x: Any, y: Any) -> Value:
    if _number(y):
        return _scale(b, name, x, y)
    if _number(x):
        return _scale(b, name, y, x)
    x, y, shapes = _pair(b, name, x, y)
    return b.emit(lin.Multiply, name, (x, y), x.meta * y.meta, shapes)


def _div(b: _Reader, name: str, x: Any, y: Any) -> Value:
    if not _number(y):
        raise Unsupported("divides by a tensor")
    return _scale(b, name, x, 1.0 / y)


def _neg(b: _Reader, name: str, x: Value) -> Value:
    return _scale(b, name, x, -1.0)


def _identity(b: _Reader, name: str, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _reshape_to(b: _Reader, name: str, x: Value, meta: Tensor) -> Value:
    before, after = b.sample_shape(x.meta), b.sample_shape(meta)
    return x if before == after else b.emit(lin.Reshape, name, (x,), meta, before, after)


def _reshape(b: _Reader, name: str, x: Value, *shape: Any) -> Value:
    return _reshape_to(b, name, x, x.meta.reshape(*shape))


def _flatten(b: _Reader, name: str, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return _reshape_to(b, name, x, x.meta.flatten(start_dim, end_dim))


def _squeeze(b: _Reader, name: str, x: Value, *dims: Any) -> Value:
    return _reshape_to(b, name, x, x.meta.squeeze(*dims))


def _unsqueeze(b: _Reader, name: str, x: Value, dim: int) -> Value:
    return _reshape_to(b, name, x, x.meta.unsqueeze(dim))


def _item(b: _Reader, name: str, x: Value, index: Any) -> Value:
    """x[:, 0] of one channel, x[:, :, None, None] and the like: no more than another shape."""
    parts = index if isinstance(index, tuple) else (index,)
    meta, dim = x.meta, 0
    for part in parts:
        if part is None:
            meta, dim = meta.unsqueeze(dim), dim + 1
        elif part == slice(None):
            dim += 1
        elif part is Ellipsis:
            dim = meta.dim() - (len(parts) - parts.index(part) - 1)
        elif part in (0, -1) and dim > 0 and meta.size(dim) == 1:
            meta = meta.squeeze(dim)
        else:
            raise Unsupported("takes a part of a tensor")
    return _reshape_to(b, name, x, meta)


def _reduce(mean: bool) -> Callable[..., Value]:
    def rule(
        b: _Reader,
        name: str,
        x: Value,
        dim: Any = None,
        keepdim: bool = False,
        *,
        dtype: Any = None,
        **other: Any,
    ) -> Value:
        dim = other.get("axis", dim)
        if dim is None or dtype is not None:
            raise Unsupported("mixes samples" if dtype is None else "changes the dtype")
        dims = sorted(d % x.meta.dim() for d in ([dim] if isinstance(dim, int) else dim))
        if 0 in dims:
            raise Unsupported("mixes samples")
        meta = x.meta.sum(dims, keepdim)
        return b.emit(
            lin.Sum, name, (x,), meta, b.sample_shape(x.meta), tuple(dims), bool(keepdim), mean
        )

    return rule


def _cat(b: _Reader, name: str, tensors: Any, dim: int = 0, **other: Any) -> Value:
    dim = other.get("axis", dim)
    first = next(t for t in tensors if t.number is not None)
    tensors = tuple(_lift(b, name, t, first) for t in tensors)
    dim %= first.meta.dim()
    if dim == 0:
        raise Unsupported("mixes samples")
    shapes = tuple(b.sample_shape(t.meta) for t in tensors)
    return b.emit(
        lin.Concatenate, name, tensors, torch.cat([t.meta for t in tensors], dim), shapes, dim
    )


def _act(act: str, slope: Callable[..., float] = lambda *a: 0.2) -> Callable[..., Value]:
    def rule(
        b: _Reader,
        name: str,
        x: Value,
        negative_slope: float = 0.01,
        inplace: bool = False,
        **other: Any,
    ) -> Value:
        return activate(b, name, x, act, slope=negative_slope, inplace=inplace)

    def plain(b: _Reader, name: str, x: Value, inplace: bool = False) -> Value:
        return activate(b, name, x, act, inplace=inplace)

    return rule if act == "leaky_relu" else plain


def activate(
    b: _Reader,
    name: str,
    x: Value,
    act: str,
    *,
    slope: float = 0.2,
    inplace: bool = False,
    **more: Any,
) -> Value:
    if inplace:
        _check_in_place(b, x)
    if slope < 0:
        raise Unsupported("has a negative slope")
    found = (
        x
        if act == "linear" and more.get("clamp") is None and more.get("gain", 1.0) == 1.0
        else b.emit(
            lin.Act, name, (x,), x.meta, act, slope, more.get("gain", 1.0), more.get("clamp")
        )
    )
    if inplace:
        x.number = found.number
    return found


def _check_in_place(b: _Reader, x: Value) -> None:
    """From here on the name of the input means the output; other names of it must not exist."""
    if x.number in b.viewed or x.number in (0, 1):
        raise Unsupported("changes a tensor in place that is seen elsewhere")


def _in_place(rule: Callable[..., Value]) -> Callable[..., Value]:
    def changed(b: _Reader, name: str, x: Value, y: Any) -> Value:
        _check_in_place(b, x)
        found = rule(b, name, x, y)
        x.number = found.number
        return found

    return changed


def _bias_act_function(
    b: _Reader,
    name: str,
    x: Value,
    bias: Value | None = None,
    act: str = "leaky_relu",
    *,
    slope: float = 0.2,
    **more: Any,
) -> Value:
    if bias is not None:
        if bias.source is None:
            raise Unsupported("has a bias that depends on samples")
        x = b.emit(lin.Bias, name, (x,), x.meta, b.source(bias.source))
    return activate(b, name, x, act, slope=slope, **more)


def _gelu(b: _Reader, name: str, x: Value, approximate: str = "none") -> Value:
    if approximate != "none":
        raise Unsupported("is an approximation")
    return activate(b, name, x, "gelu")


def _softplus(b: _Reader, name: str, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if (beta, threshold) != (1, 20):
        raise Unsupported("has a beta or threshold of its own")
    return activate(b, name, x, "softplus")


def affine(
    b: _Reader,
    name: str,
    x: Value,
    weight: int,
    bias: int | None,
    metas: tuple[Tensor, Tensor | None],
    conv: tuple[Any, ...] | None,
) -> Value:
    weight_meta, bias_meta = metas
    if x.number is None:
        raise Unsupported("is applied to weights alone")
    if conv is None:
        meta = F.linear(x.meta.to(weight_meta.dtype), weight_meta, bias_meta)
    else:
        if x.meta.dim() != weight_meta.dim():
            raise Unsupported("is applied to a sample without a batch")
        meta = torch.convolution(x.meta.to(weight_meta.dtype), weight_meta, bias_meta, *conv)
    b.sample_shape(meta)
    return b.emit(lin.Affine, name, (x,), meta, weight, bias, conv, matrix=meta.dim() == 2)


def _tuple(x: Any, n: int) -> list[int]:
    return [x] * n if isinstance(x, int) else [*x] * (n if len(x) == 1 else 1)


def _convolve(n: int, transposed: bool) -> Callable[..., Value]:
    def rule(
        b: _Reader,
        name: str,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *more: Any,
        **other: Any,
    ) -> Value:
        names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        given = {"dilation": 1, "groups": 1, "output_padding": 0, **dict(zip(names, more)), **other}
        if isinstance(padding, str):
            raise Unsupported(f"has padding {padding!r}")
        if weight.source is None or (bias is not None and bias.source is None):
            raise Unsupported("has weights that depend on samples")
        conv = (
            _tuple(stride, n), _tuple(padding, n), _tuple(given["dilation"], n), transposed,
            _tuple(given["output_padding"], n), given["groups"],
        )  # fmt: skip
        numbers = b.number(weight), None if bias is None else b.number(bias)
        return affine(
            b, name, x, *numbers, (weight.meta, None if bias is None else bias.meta), conv
        )

    return rule


def _linear(b: _Reader, name: str, x: Value, weight: Value, bias: Value | None = None) -> Value:
    if weight.source is None or (bias is not None and bias.source is None):
        raise Unsupported("has weights that depend on samples")
    numbers = b.number(weight), None if bias is None else b.number(bias)
    return affine(b, name, x, *numbers, (weight.meta, None if bias is None else bias.meta), None)


def _module_metas(m: Any) -> tuple[Tensor, Tensor | None]:
    # The shape of a parametrised weight without running the parametrisation.
    if isinstance(m, nn.Linear):
        shape: tuple[int, ...] = (m.out_features, m.in_features)
    elif m.transposed:
        shape = (m.in_channels, m.out_channels // m.groups, *m.kernel_size)
    else:
        shape = (m.out_channels, m.in_channels // m.groups, *m.kernel_size)
    dtype = next(m.parameters()).dtype
    weight = torch.empty(shape, dtype=dtype, device="meta")
    out = m.out_features if isinstance(m, nn.Linear) else m.out_channels
    return weight, None if m.bias is None else torch.empty(out, dtype=dtype, device="meta")


def _conv_module(b: _Reader, name: str, m: Any, x: Value, output_size: Any = None) -> Value:
    if output_size is not None or isinstance(m.padding, str):
        raise Unsupported("chooses its padding by itself")
    conv = ([*m.stride], [*m.padding], [*m.dilation], m.transposed, [*m.output_padding], m.groups)
    weight = b.weight(m, "weight")
    assert weight is not None
    return affine(b, name, x, weight, b.weight(m, "bias"), _module_metas(m), conv)


def _linear_module(b: _Reader, name: str, m: Any, x: Value) -> Value:
    weight = b.weight(m, "weight")
    assert weight is not None
    return affine(b, name, x, weight, b.weight(m, "bias"), _module_metas(m), None)


def _block(b: _Reader, name: str, m: Any, x: Value) -> Value:
    for child in m.children():
        b.check_hooks(child, name)
    y = _conv_module(b, f"{name}.0", m.conv, x)
    if m.norm is not None:
        y = MODULES[leaf_kind(m.norm)](b, f"{name}.1", m.norm, y)
    return activate(b, name, y, m.act, slope=m.slope)


def _bias_act(b: _Reader, name: str, m: Any, x: Value) -> Value:
    bias = b.weight(m, "bias")
    y = b.emit(lin.Bias, name, (x,), x.meta, bias)
    return activate(b, name, y, m.act, slope=m.slope, gain=m.gain, clamp=m.clamp)


def _batch_norm(b: _Reader, name: str, m: Any, x: Value) -> Value:
    if m.training or m.running_mean is None:
        raise Unsupported("mixes samples: batch statistics")
    statistics = b.weight(m, "running_mean"), b.weight(m, "running_var")
    more = b.weight(m, "weight"), b.weight(m, "bias"), m.eps
    return b.emit(lin.FixedNorm, name, (x,), x.meta, *statistics, *more)


def _group_norm(b: _Reader, name: str, m: Any, x: Value, groups: int) -> Value:
    if math.prod(x.meta.shape[2:]) * x.meta.size(1) == groups:
        raise Unsupported("normalises single values")
    affine = b.weight(m, "weight"), b.weight(m, "bias")
    return b.emit(lin.GroupNorm, name, (x,), x.meta, groups, *affine, m.eps)


def _instance_norm(b: _Reader, name: str, m: Any, x: Value) -> Value:
    if m.track_running_stats:
        raise Unsupported("keeps running statistics")
    return _group_norm(b, name, m, x, x.meta.size(1))


def _layer_norm(b: _Reader, name: str, m: Any, x: Value) -> Value:
    if len(m.normalized_shape) >= x.meta.dim():
        raise Unsupported("mixes samples")
    affine = b.weight(m, "weight"), b.weight(m, "bias")
    return b.emit(lin.LayerNorm, name, (x,), x.meta, tuple(m.normalized_shape), *affine, m.eps)


def _norm_act(b: _Reader, name: str, m: Any, x: Value) -> Value:
    if m.norm == "batch":
        y = _batch_norm(b, name, m, x)
    elif m.running_mean is not None:
        raise Unsupported("keeps running statistics")
    else:
        groups = {"instance": x.meta.size(1), "layer": 1}.get(m.norm, m.groups)
        y = _group_norm(b, name, m, x, groups)
    return activate(b, name, y, m.act, slope=m.slope)


def _dropout(b: _Reader, name: str, m: Any, x: Value) -> Value:
    if m.training and m.p > 0:
        raise Unsupported("draws a random mask")
    return x


def _embedding(b: _Reader, name: str, m: Any, x: Value) -> Value:
    if m.max_norm is not None or m.scale_grad_by_freq or m.sparse:
        raise Unsupported("renormalises rows, or scales or sparsifies their gradients")
    if x.number is None or x.meta.is_floating_point():
        raise Unsupported("is not applied to labels")
    weight = b.weight(m, "weight")
    meta = torch.empty(
        *x.meta.shape,
        m.embedding_dim,
        dtype=next(m.parameters()).dtype,
        device="meta",
    )
    return b.emit(
        lin.Look, name, (x,), meta, weight, -1 if m.padding_idx is None else m.padding_idx
    )


def _avg_pool(
    b: _Reader,
    name: str,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Value:
    if x.meta.dim() != 4:
        raise Unsupported("is not applied to images")
    stride = _tuple(stride, 2) if stride else _tuple(kernel_size, 2)
    arguments = (
        _tuple(kernel_size, 2),
        stride,
        _tuple(padding, 2),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    meta = torch.ops.aten.avg_pool2d(x.meta, *arguments)
    return b.emit(lin.Resample, name, (x,), meta, b.sample_shape(x.meta), "avg_pool2d", arguments)


def _adaptive_pool(b: _Reader, name: str, x: Value, output_size: Any) -> Value:
    size = [s or x.meta.size(k + 2) for k, s in enumerate(_tuple(output_size, 2))]
    if x.meta.dim() != 4 or any(x.meta.size(k + 2) % s for k, s in enumerate(size)):
        raise Unsupported("has windows of several sizes")
    return _avg_pool(b, name, x, [x.meta.size(k + 2) // s for k, s in enumerate(size)])


def _interpolate(
    b: _Reader,
    name: str,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:
    if mode not in ("nearest", "bilinear") or antialias or x.meta.dim() != 4:
        raise Unsupported(f"has mode {mode!r}, or antialiasing, or is not applied to images")
    scales: list[float | None] = [None, None]
    if size is None:
        scales = [
            float(s)
            for s in (
                scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * 2
            )
        ]
        size = [math.floor(x.meta.size(k + 2) * s) for k, s in enumerate(scales)]  # type: ignore[operator]
        if recompute_scale_factor:
            scales = [None, None]
    size = _tuple(size, 2)
    arguments = (size, *scales) if mode == "nearest" else (size, bool(align_corners), *scales)
    kind = f"upsample_{mode}2d"
    meta = x.meta.new_empty(*x.meta.shape[:2], *size)
    return b.emit(lin.Resample, name, (x,), meta, b.sample_shape(x.meta), kind, arguments)


def _pad(
    b: _Reader, name: str, x: Value, pad: Any, mode: str = "constant", value: float | None = None
) -> Value:
    if mode != "constant" or len(pad) > 2 * (x.meta.dim() - 1):
        raise Unsupported(f"has mode {mode!r} or pads the batch")
    return b.emit(lin.Pad, name, (x,), F.pad(x.meta, pad), tuple(pad), float(value or 0.0))


MODULES: dict[Any, Callable[..., Value]] = {
    **dict.fromkeys(_CONVOLUTIONS, _conv_module),
    nn.Linear: _linear_module,
    ConvBlock: _block,
    ConvTransposeBlock: _block,
    BiasAct: _bias_act,
    nn.ReLU: lambda b, name, m, x: activate(b, name, x, "relu", inplace=m.inplace),
    nn.LeakyReLU: lambda b, name, m, x: activate(
        b, name, x, "leaky_relu", slope=m.negative_slope, inplace=m.inplace
    ),
    nn.SiLU: lambda b, name, m, x: activate(b, name, x, "silu", inplace=m.inplace),
    nn.GELU: lambda b, name, m, x: _gelu(b, name, x, m.approximate),
    nn.Tanh: lambda b, name, m, x: activate(b, name, x, "tanh"),
    nn.Sigmoid: lambda b, name, m, x: activate(b, name, x, "sigmoid"),
    nn.Softplus: lambda b, name, m, x: _softplus(b, name, x, m.beta, m.threshold),
    nn.Identity: lambda b, name, m, x: x,
    nn.Flatten: lambda b, name, m, x: _flatten(b, name, x, m.start_dim, m.end_dim),
    nn.AvgPool2d: lambda b, name, m, x: _avg_pool(
        b, name, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda b, name, m, x: _adaptive_pool(b, name, x, m.output_size),
    nn.Upsample: lambda b, name, m, x: _interpolate(
        b, name, x, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor
    ),
    nn.ZeroPad2d: lambda b, name, m, x: _pad(b, name, x, m.padding),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    nn.GroupNorm: lambda b, name, m, x: _group_norm(b, name, m, x, m.num_groups),
    NormAct: _norm_act,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
}  # fmt: skip

# By the name of the function or method; other names of the same thing below.
FUNCTIONS: dict[str, Callable[..., Value]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "truediv": _div,
    "neg": _neg,
    "iadd": _in_place(_add),
    "isub": _in_place(_sub),
    "imul": _in_place(_mul),
    "itruediv": _in_place(_div),
    "bias_act": _bias_act_function,
    "contiguous": _identity,
    "reshape": _reshape,
    "flatten": _flatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "getitem": _item,
    "sum": _reduce(mean=False),
    "mean": _reduce(mean=True),
    "cat": _cat,
    "relu": _act("relu"),
    "leaky_relu": _act("leaky_relu"),
    "silu": _act("silu"),
    "tanh": _act("tanh"),
    "sigmoid": _act("sigmoid"),
    "gelu": _gelu,
    "softplus": _softplus,
    **{f"conv{n}d": _convolve(n, False) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolve(n, True) for n in (1, 2, 3)},
    "linear": _linear,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "interpolate": _interpolate,
    "pad": _pad,
}
_LABELS = {
    "view": "reshape",
    "concat": "cat",
    "concatenate": "cat",
    "div": "truediv",
    "multiply": "mul",
    "true_divide": "truediv",
    "radd": "add",
    "rmul": "mul",
}
