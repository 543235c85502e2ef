"""What this installation can do: versions, compiled modules, and which backend serves each op and
why others do not."""

from __future__ import annotations

import platform
from typing import Any

import torch

from .ops import _backends
from .ops._registry import Kernel, ops


def _module(name: str) -> dict[str, Any]:
    reason = _backends.missing("cpu" if name == "_cpu" else "cuda")
    loaded = _backends._load(name)
    if isinstance(loaded, str):
        return {"built": False, "reason": loaded}
    facts = {
        key: getattr(loaded, key)
        for key in ("version", "isa", "openmp", "architectures")
        if hasattr(loaded, key)
    }
    return {"built": True, **facts, **({"reason": reason} if reason else {})}


def _kernel(kernel: Kernel, devices: tuple[torch.device, ...]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for device in devices:
        try:
            serving = kernel.serving(device)
        except _backends.BackendError as error:
            serving = f"none: {error}"
        others = {
            name: reason
            for name in _backends.NAMES
            if name not in ("auto", "reference", serving)
            and (reason := kernel.refuses(name, device)) is not None
        }
        result[device.type] = {"backend": serving, "others": others}
    return result


def info() -> dict[str, Any]:
    """Facts about this installation.

    Returns:
        A dict with "pyfastgan", "torch" and "python" (versions), "cpu" (processor), "threads", "backend" (the choice in
        force), "modules" (the compiled ones) and "ops": for each op and each of its kernels and each device the backend
        that serves it and, for every other backend, why it does not.
    """
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    return {
        "pyfastgan": _version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backend": _backends.choice.name,
        "modules": {name: _module(name) for name in ("_cpu", "_cuda")},
        "ops": {
            name: {kernel.name: _kernel(kernel, tuple(devices)) for kernel in op.kernels}
            for name, op in sorted(ops().items())
        },
    }


def _version() -> str:
    from . import __version__

    return __version__


def info_text() -> str:
    """`info()` as lines for a terminal."""
    facts = info()
    lines = [
        f"pyfastgan {facts['pyfastgan']}, torch {facts['torch']}, Python {facts['python']}",
        f"processor {facts['cpu']}, {facts['threads']} threads; GPU {facts['gpu'] or 'none'}",
        f"backend asked for: {facts['backend']}",
    ]
    for name, module in facts["modules"].items():
        known = [
            f"{key} {value}" for key, value in module.items() if key not in ("built", "reason")
        ]
        state = ", ".join(known) if module["built"] else "not built"
        lines.append(
            f"pyfastgan.{name}: {state}" + (f" ({module['reason']})" if "reason" in module else "")
        )
    for name, kernels in facts["ops"].items():
        lines.append(f"\n{name}")
        for kernel, devices in kernels.items():
            for device, state in devices.items():
                lines.append(f"  {kernel} on {device}: {state['backend']}")
                lines += [f"    not {other}: {reason}" for other, reason in state["others"].items()]
    return "\n".join(lines)
