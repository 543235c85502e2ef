"""Which implementations there are on this machine, which one is asked for, and why one cannot be
had."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from types import ModuleType, TracebackType
from typing import Any

import torch

NAMES = ("auto", "reference", "cpu", "cuda", "triton")


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call; the message says why."""


@functools.cache
def _load(module: str) -> ModuleType | str:
    """A compiled module, or the reason why it cannot be imported."""
    name = f"pyfastgan.{module}"
    if importlib.util.find_spec(name) is None:
        return f"{name} is not built (see PYFASTGAN_BUILD in the README)"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return f"{name} cannot be imported: {error}"


def native(module: str) -> ModuleType:
    """The compiled module `_cpu` or `_cuda`."""
    loaded = _load(module)
    if isinstance(loaded, str):
        raise BackendError(loaded)
    return loaded


def cpu_kernel(name: str) -> Any:
    """A compiled kernel that is called past everything else; None where there is none, as in a build of other ops."""
    loaded = _load("_cpu")
    return None if isinstance(loaded, str) else getattr(loaded, name, None)


def triton_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors (for tests: it is slow)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def missing(name: str) -> str | None:
    """Why a backend cannot run on this machine at all; None if it can."""
    if name == "cpu":
        loaded = _load("_cpu")
        return loaded if isinstance(loaded, str) else None
    if name == "cuda":
        loaded = _load("_cuda")
        return loaded if isinstance(loaded, str) else _no_gpu()
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        return None if triton_interpreted() else _no_gpu()
    return None


def refuses_device(name: str, device: torch.device) -> str | None:
    """Why a backend that is there cannot take tensors of this device; None if it can."""
    if name == "reference" or (name == "triton" and triton_interpreted() and device.type == "cpu"):
        return None
    wanted = "cpu" if name == "cpu" else "cuda"
    return None if device.type == wanted else f"it takes {wanted} tensors, not {device.type}"


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    reason = missing(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} is not available: {reason}")
    return name


class _Choice:
    """The backend in force, for all threads: autograd may run a backward pass in a thread of its
    own."""

    name: str  # a plain attribute, since every call of an op reads it

    def __getattr__(self, attribute: str) -> str:
        # Before anything was chosen.
        if attribute != "name":
            raise AttributeError(attribute)
        self.name = _checked(os.environ.get("PYFASTGAN_BACKEND") or "auto")
        return self.name


choice = _Choice()


class use_backend:
    """Chooses the implementation that serves every op from here on.

    A setter, `use_backend("reference")`, and a context manager, which restores what was chosen before. The environment
    variable PYFASTGAN_BACKEND sets the default.

    Args:
        name: "auto" (the fastest that can serve each call; where none can, the reference, said once in a warning),
            "reference" (plain PyTorch), "cpu", "cuda" or "triton".

    Raises:
        ValueError: the name is none of these.
        BackendError: the backend cannot run on this machine. A call that the named backend cannot
            serve raises it too.
    """

    def __init__(self, name: str) -> None:
        self._before = choice.name
        choice.name = _checked(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        choice.name = self._before


@functools.cache
def warn_fallback(reason: str) -> None:
    """Says once for each reason that the reference serves instead of a kernel."""
    warnings.warn(
        f"pyfastgan falls back on its PyTorch reference: {reason}. `python -m pyfastgan info` lists every op.",
        stacklevel=2,
    )
