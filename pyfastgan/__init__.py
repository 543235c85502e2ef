"""Fast kernels for generative models, and the models made of them.

`pyfastgan.ops` and `pyfastgan.nn` need torch alone. The families (`pyfastgan.gan`, `pyfastgan.diffusion`, ...),
`pyfastgan.training`, `pyfastgan.data` and `pyfastgan.metrics` are loaded when they are first named
and need `pip install pyfastgan[train]`.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import ops
from ._info import info, info_text
from .ops._backends import BackendError, use_backend

__version__ = "0.1.0"

__all__ = ["BackendError", "info", "info_text", "ops", "use_backend"]

_LAZY = (
    "nn",
    "acceleration",
    "gan",
    "flow",
    "vae",
    "autoregressive",
    "diffusion",
    "training",
    "data",
    "metrics",
    "bench",
    "testing",
)


def __getattr__(name: str) -> Any:
    if name == "accelerate":
        return importlib.import_module(f"{__name__}.acceleration").accelerate
    if name in _LAZY:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == __name__:
                raise
            raise ImportError(
                f"pyfastgan.{name} needs {error.name}: pip install 'pyfastgan[train]'"
            ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
