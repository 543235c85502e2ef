"""Work that is captured in a CUDA graph once and then started as a whole, without a launch for each kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyfastgan.ops.random import seeds_shifted_by

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pyfastgan.training.system import System

# Runs before a capture, in which libraries choose their kernels and optimizers make their state.
_WARM_UP = 3
# Odd, so that the shifts of 2^64 steps differ.
_SHIFT = 0x9E3779B97F4A7C15

Capture = Callable[[Callable[[], Any]], Callable[[], Any]]


def capture(function: Callable[[], Any]) -> Callable[[], Any]:
    """Captures what a function starts on the GPU, without running it.

    Returns:
        A function that runs it and returns what `function` returned: the same tensors every time,
        overwritten.

    Raises:
        RuntimeError: the function waits for the GPU, or does something else that a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = function()
    except RuntimeError as error:
        raise RuntimeError(f"this work cannot be captured in a CUDA graph: {error}") from error

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def beside(function: Callable[[], Any]) -> Any:
    """Runs a function on a stream of its own, as captures have to be warmed up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result


class captured:
    """A function of CUDA tensors, as a whole sampling loop is one, that is replayed from a CUDA graph.

    The first call with tensors of certain shapes and types runs it and captures it; the ones after
    copy their arguments into the captured ones, replay, and return copies of the results. Nothing
    is recorded for gradients. Whatever else it depends on stays as it was captured: a seed that is a
    number gives the same noise in every call; one that is drawn, or given as a tensor, does not.

    Args:
        function: takes and returns tensors (one, or a tuple), and does not wait for the GPU.

    Raises:
        TypeError, ValueError: an argument of a call is no tensor on a CUDA device.
        RuntimeError: the function cannot be captured.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graphs: dict[Any, tuple[tuple[Tensor, ...], Callable[[], Any]]] = {}

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Any:
        for t in tensors:
            if not isinstance(t, Tensor):
                raise TypeError(f"a captured function takes tensors, got {type(t).__name__}")
            if t.device.type != "cuda":
                raise ValueError(f"a captured function takes CUDA tensors, got one on {t.device}")
        if not tensors and not torch.cuda.is_available():
            raise ValueError("a captured function needs a CUDA device, and torch sees none")
        key = tuple((t.shape, t.dtype, t.device) for t in tensors)
        if key not in self._graphs:
            held = tuple(t.clone() for t in tensors)
            for _ in range(_WARM_UP):
                beside(lambda: self._function(*held))
            self._graphs[key] = held, capture(lambda: self._function(*held))
        held, replay = self._graphs[key]
        for to, t in zip(held, tensors):
            to.copy_(t)
        result = replay()
        if isinstance(result, Tensor):
            return result.clone()
        return tuple(t.clone() for t in result)


def check_capturable(system: System, device: torch.device, name: str) -> None:
    """Refuses what cannot be trained with cuda_graph=True."""
    if device.type != "cuda":
        raise ValueError(f"cuda_graph=True needs a CUDA device, and this run is on {device}")
    if _period(system) < 1:
        raise ValueError(
            f"cuda_graph=True cannot be had for {name} with this configuration: its steps differ in "
            "more than their data and noise"
        )


def _period(system: System) -> int:
    return int(getattr(system, "period", 0))


class GraphedSteps:
    """The steps of a system, each kind of them from a graph of its own.

    A system says by `period` after how many steps the work repeats. Its steps are called with the
    numbers `period` to `2 period - 1` over and over; what tells steps apart is a shift of all seeds
    that lies on the device, and so does a learning rate that changes. So a captured run draws other
    noise than one that is not, and the same when it is resumed.
    """

    def __init__(
        self,
        system: System,
        fabric: Fabric,
        *,
        capture: Capture = capture,
        warm: Callable[[Callable[[], Any]], Any] = beside,
    ) -> None:
        self._system, self._fabric = system, fabric
        self._capture, self._warm = capture, warm
        self._shift = torch.zeros((), dtype=torch.int64, device=fabric.device)
        self._warmed: dict[Any, int] = {}
        self._graphs: dict[Any, tuple[tuple[Tensor, ...], Callable[[], Any]]] = {}
        for optimizer in system.optimizers.values():
            for group in getattr(optimizer, "optimizer", optimizer).param_groups:
                if "capturable" in group:
                    group["capturable"] = True
                    if hasattr(system, "prepare"):
                        rate = torch.as_tensor(group["lr"], dtype=torch.float32)
                        group["lr"] = rate.to(fabric.device)

    def __call__(self, batch: tuple[Tensor, ...], step: int) -> dict[str, Tensor]:
        period = _period(self._system)
        kind = period + step % period
        shift = step * _SHIFT % 2**64
        self._shift.fill_(shift if shift < 2**63 else shift - 2**64)
        key = (kind, *((t.shape, t.dtype) for t in batch))

        def run(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
            with seeds_shifted_by(self._shift):
                return self._system.training_step(self._fabric, batch, kind)

        if key not in self._graphs:
            self._warmed[key] = self._warmed.get(key, 0) + 1
            if self._warmed[key] <= _WARM_UP:
                result: dict[str, Tensor] = self._warm(lambda: run(batch))
                return result
            held = tuple(t.clone() for t in batch)
            self._graphs[key] = held, self._capture(lambda: run(held))
        held, replay = self._graphs[key]
        for to, t in zip(held, batch):
            to.copy_(t)
        losses: dict[str, Tensor] = replay()
        return losses
