"""Fast kernels for generative models, and the models made of them.

`pyfastgan.ops` and `pyfastgan.nn` need torch alone. The families (`pyfastgan.gan`, ...), `pyfastgan.training`,
`pyfastgan.data` and `pyfastgan.metrics` are loaded when they are first named and need `pip install pyfastgan[train]`.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import ops
from .ops._backends import BackendError, use_backend

__version__ = "0.1.0"

_LAZY = ("nn", "gan", "training", "data", "metrics")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
