"""What every op is made of, and the one list of them that the contract tests, the benchmarks and `info` read.

A `Kernel` is one registered torch operator with its implementations: a forward, a backward or a
backward of the backward. An `Op` is what a user calls: a public function over one to three kernels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import _backends

_LIBRARY = torch.library.Library("pyfastgan", "DEF")

# The types of arguments that torch would do nothing about. Sequences are of numbers in every schema.
_PLAIN = {
    *(torch.Tensor, torch.nn.Parameter, type(None), str, bool, int, float),
    *(list, tuple, torch.Size, torch.dtype),
}

# Every call asks these.
_is_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_profiled = torch.autograd._profiler_enabled
_is_plain = _PLAIN.issuperset
_choice = _backends.choice


def is_plain_call(*args: Any) -> bool:
    """Whether torch's dispatcher, which costs as much as a small kernel, may be passed by, since nothing would see it:
    no mode, no transform, no profiler, no subclass of Tensor. Tracing has to be asked for before."""
    return not (_modes() or _transforms() or _profiled()) and _is_plain(map(type, args))


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Kernel:
    """One functional torch operator, `torch.ops.pyfastgan.<name>`, served by the first backend that can.

    Args:
        schema: torch's schema, without the namespace, e.g. "negate(Tensor x) -> Tensor"; a tensor comes first.
        reference: plain PyTorch with the schema's positional arguments; it defines the operator.
        fake: the same for tracing: tensors of the right shape, dtype and strides, no values.
        cpu: the same over `pyfastgan._cpu`; leave it out if there is no such kernel.
        cuda: the same over `pyfastgan._cuda`.
        triton: "module:function" in `pyfastgan.kernels`, imported when it is first needed.
    """

    def __init__(
        self,
        schema: str,
        *,
        reference: Callable[..., Any],
        fake: Callable[..., Any],
        cpu: Callable[..., Any] | None = None,
        cuda: Callable[..., Any] | None = None,
        triton: str | None = None,
    ) -> None:
        self.name = schema.split("(", 1)[0]
        self._triton = triton
        self._run: dict[str, Callable[..., Any]] = {"reference": reference}
        self._served: dict[tuple[str, torch.device], str] = {}
        if cpu is not None:
            self._run["cpu"] = cpu
        if cuda is not None:
            self._run["cuda"] = cuda
        _LIBRARY.define(schema)
        _LIBRARY.impl(self.name, self._dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"pyfastgan::{self.name}", fake, lib=_LIBRARY)
        self.op = getattr(torch.ops.pyfastgan, self.name).default

    def __call__(self, *args: Any) -> Any:
        if _is_compiling() or not is_plain_call(*args):
            return self.op(*args)
        # What serves does not change while the choice stays, and finding it costs as much as a
        # small kernel.
        device = args[0].device
        backend = self._served.get((_choice.name, device)) or self._find(device)
        return self._run[backend](*args)

    def backends(self) -> tuple[str, ...]:
        """The backends that are written for this kernel."""
        return (
            (*self._run, "triton")
            if self._triton and "triton" not in self._run
            else tuple(self._run)
        )

    def refuses(self, backend: str, device: torch.device) -> str | None:
        """Why a backend does not serve this kernel on tensors of `device`; None if it does."""
        if backend not in self.backends():
            others = [name for name in self.backends() if name != "reference"]
            return f"{self.name} has no {backend} kernel (it has {', '.join(others) or 'only a reference'})"
        return _backends.missing(backend) or _backends.refuses_device(backend, device)

    def serving(self, device: torch.device) -> str:
        """The backend that serves a call on tensors of `device` under the choice in force.

        Raises:
            BackendError: a backend was chosen by name and cannot serve it.
        """
        chosen = _backends.choice.name
        if chosen != "auto":
            reason = self.refuses(chosen, device)
            if reason is not None:
                raise _backends.BackendError(
                    f"backend {chosen!r} cannot serve {self.name}: {reason}"
                )
            return chosen
        wanted = [name for name in ("cpu", "cuda", "triton") if name in self.backends()]
        wanted = [name for name in wanted if (name == "cpu") == (device.type == "cpu")]
        for name in wanted:
            reason = self.refuses(name, device)
            if reason is None:
                return name
            _backends.warn_fallback(reason)
        return "reference"

    def on_gpu(self, device: torch.device) -> bool:
        """Whether a GPU's kernel is asked for, of an operator that has none for a CPU."""
        chosen = _backends.choice.name
        if chosen == "auto":
            return device.type == "cuda"
        return chosen in ("cuda", "triton") and chosen in self.backends()

    def _find(self, device: torch.device) -> str:
        backend = self._served[_choice.name, device] = self.serving(device)
        self.implementation(backend)
        return backend

    def _dispatch(self, *args: Any) -> Any:
        """What torch's dispatcher calls. Through it a tensor that was not asked for is an empty one, like the first
        argument otherwise; a kernel may leave it out, as None."""
        device = args[0].device
        backend = self._served.get((_choice.name, device)) or self._find(device)
        results = self._run[backend](*args)
        if type(results) is not tuple:
            return results
        return tuple(args[0].new_empty(0) if r is None else r for r in results)

    def implementation(self, backend: str) -> Callable[..., Any]:
        if backend == "triton" and "triton" not in self._run:
            assert self._triton is not None
            module, function = self._triton.split(":")
            self._run["triton"] = getattr(
                importlib.import_module(f"pyfastgan.kernels.{module}"), function
            )
        return self._run[backend]


@dataclass(frozen=True)
class T:
    """A floating-point tensor of a sample call: drawn from N(0, scale^2), then `map` of it, computed
    in float64, where the op needs another range."""

    shape: tuple[int, ...]
    channels_last: bool = False
    scale: float = 1.0
    map: Callable[[torch.Tensor], torch.Tensor] | None = None

    def make(self, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.scale
        if self.map is not None:
            x = self.map(x)
        x = x.to(dtype=dtype, device=device)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x


@dataclass(frozen=True)
class Sample:
    """A call of an op. Every `T` among the arguments becomes a tensor; `takes_dtype` passes dtype=
    instead."""

    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    takes_dtype: bool = False

    def make(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def build(value: Any, seed: int) -> Any:
            if isinstance(value, T):
                return value.make(dtype, device, seed)
            return value.to(device) if isinstance(value, torch.Tensor) else value

        args = tuple(build(value, k) for k, value in enumerate(self.args))
        kwargs = {key: build(v, 100 + k) for k, (key, v) in enumerate(self.kwargs.items())}
        if self.takes_dtype:
            kwargs |= {"dtype": dtype, "device": device}
        return args, kwargs


@dataclass(frozen=True)
class BadCall:
    """A call that must be refused before any memory is touched, and what its error says."""

    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    error: type[Exception]
    says: str


@dataclass(frozen=True)
class Row:
    """A line of the benchmarks.

    Args:
        name: what is measured, e.g. "bias_act fwd+bwd".
        shape: how the table names the shape.
        make: allocates the inputs and returns the contestants: "ours" and "eager" (as the field writes it), and any
            peer library's function under its name; `torch.compile` of eager is added by the
            benchmark.
        bytes: the fewest bytes that must move.
        flops: the fewest floating-point operations of a matrix product kind; 0 where memory is the
            limit.
    """

    name: str
    shape: str
    make: Callable[[], dict[str, Callable[[], Any]]]
    bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Op:
    """A public op and all that is needed to test and to measure it.

    Args:
        name: the public name in `pyfastgan.ops`.
        function: the public function.
        reference: the same signature in plain PyTorch, differentiable by autograd; it defines the
            op.
        kernels: its forward, backward, backward of the backward, as far as there are.
        samples: calls that between them reach every branch of every kernel.
        bad_calls: calls that must be refused.
        orders: how many times it can be differentiated.
        epsilon: for each dtype the error allowed beside twice that of plain PyTorch, relative to
            max(|value|, 1).
        rows: the lines of the benchmark tables.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    kernels: tuple[Kernel, ...]
    samples: tuple[Sample, ...]
    bad_calls: tuple[BadCall, ...]
    orders: int
    epsilon: dict[torch.dtype, float]
    rows: Callable[[], Sequence[Row]]


_OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Adds an op to the list that the contract tests, the benchmarks and `info` read."""
    if op.name in _OPS:
        raise ValueError(f"op {op.name!r} is registered twice")
    _OPS[op.name] = op
    return op


def ops() -> dict[str, Op]:
    """Every registered op by name."""
    return dict(_OPS)
