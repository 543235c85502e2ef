"""torch: norms, and convolutions at an image, with the activation after them in a `forward` of somebody's own.

`torch.fx` runs the forward once with stand-ins for its inputs. That only tells which modules are worth a look: the
forward itself stays, with its branches, and a norm whose result does not go to an activation this time is computed as
it was. While such a forward runs, the norms give a `Pending`; when they are called from elsewhere they do not.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from .pending import ACTIVATIONS, Pending
from .swap import has_hooks, serves
from .torch_modules import CONVOLUTIONS, NORMS, Run, at_image, compute, kind_of, refused_in_run

OPS = {True: "edge_conv, conv_transpose_act", False: "norm_act"}  # by whether it is a convolution


class _Frames(threading.local):
    """Of every accelerated forward that runs in this thread: what waits in it."""

    def __init__(self) -> None:
        self.stack: list[dict[int, Pending]] = []


_frames = _Frames()


class _Fast:
    """A class that is made of the one it replaces, by which copies and pickles find it again."""

    _plain: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixin = Owner if isinstance(self, Owner) else First
        # Every object has it since Python 3.11.
        state = getattr(self, "__getstate__", lambda: vars(self).copy())
        return _made, (mixin, self._plain), state()


def _made(mixin: type, plain: type) -> Any:
    return object.__new__(fast_class(mixin, plain))


@cache
def fast_class(mixin: type, plain: type) -> type:
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "_plain": plain}
    return type(plain.__name__, (mixin, plain), names)


class Owner(_Fast):
    """A module whose forward calls what is served."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        waiting: dict[int, Pending] = {}
        _frames.stack.append(waiting)
        try:
            output = forward(*args, **kwargs)
            if waiting:
                # Results that nobody used, or that are returned.
                for pending in list(waiting.values()):
                    pending.value()
                output = tree_map_only(Pending, Pending.value, output)
            return output
        finally:
            _frames.stack.pop()


class First(_Fast):
    """A norm or a convolution that an activation follows."""

    def forward(self, input: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or not _frames.stack
            or type(input) not in (Tensor, nn.Parameter)
            or torch._C._are_functorch_transforms_active()
            or input.dim() != 4
            or not serves(input)
            or refused_in_run(self)  # type: ignore[arg-type]
        ):
            return super().forward(input)  # type: ignore[misc]
        conv = isinstance(self, CONVOLUTIONS)
        module: Any = self

        def computed(act: str, slope: float, again: bool) -> Tensor:
            run = Run(module if conv else None, None if conv else module, act, slope, 2)
            return compute(run, input, False, again)

        return Pending.of(input, list(module.parameters()), computed, _frames.stack[-1])


class _Reader(fx.Tracer):
    """Follows one forward, without those of the modules that it calls."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _calls(module: nn.Module) -> fx.Graph:
    """The calls of a forward. What it writes to its attributes goes to a copy, and random numbers stay as they were."""
    shell = object.__new__(type(module))
    known: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    known |= {id(m): m for m in module.modules()}
    del known[id(module)]
    for name, value in vars(module).items():
        registered = name in ("_modules", "_parameters", "_buffers")
        vars(shell)[name] = dict(value) if registered else copy.deepcopy(value, known)
    arguments = inspect.signature(module.forward).parameters.values()
    usual: dict[str, Any] = {
        p.name: p.default for p in arguments if isinstance(p.default, bool | int | float | str)
    }
    usual |= {p.name: None for p in arguments if p.default is None}
    with torch.random.fork_rng(devices=[]):
        return _Reader().trace(shell, concrete_args=usual or None)


_METHODS = {
    name for name in ("relu", "relu_", "sigmoid", "tanh") if getattr(Tensor, name) in ACTIVATIONS
}


def _is_activation(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return kind_of(called) in _MODULES and not has_hooks(called)
    return node.target in (_METHODS if node.op == "call_method" else ACTIVATIONS)


_MODULES = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus)


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    """Norms and convolutions at an image that its forward may call itself."""
    found = {}
    for name, child in module.named_children():
        kind = kind_of(child)
        if kind in NORMS or (kind in CONVOLUTIONS and at_image(child)):
            found[name] = child
        elif kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
            found |= {f"{name}.{inner}": part for inner, part in _candidates(child).items()}
    return found


def own_forward(module: nn.Module) -> bool:
    """Whether its forward is somebody's own."""
    home = type(module).__module__.split(".")[0]
    return home not in ("torch", "pyfastgan") and not isinstance(module, _Fast)


def find(module: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Name and module of each part that an activation follows, with why it is not served if so; "" and the module
    itself with the reason if nothing can be known."""
    candidates = _candidates(module)
    if not candidates or "forward" in vars(module):
        return
    if type(module).__reduce_ex__ is not object.__reduce_ex__ or (
        type(module).__reduce__ is not object.__reduce__
    ):
        yield "", module, "it is copied in a way of its own"
        return
    try:
        graph = _calls(module)
    except Exception as error:
        text = str(error).strip().split("\n")[0][:160]
        yield "", module, f"torch.fx cannot follow its forward ({type(error).__name__}: {text})"
        return
    found = set()
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or name not in candidates or name in found:
            continue
        users = list(node.users)
        if len(users) == 1 and users[0].args[:1] == (node,) and _is_activation(users[0], module):
            found.add(name)
            yield name, candidates[name], refused_in_run(candidates[name])
