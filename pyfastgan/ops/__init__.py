"""The fast ops: one file each, registered in one list, served by the fastest backend that can.

`pyfastgan.ops.<name>` is the public function of every registered op.
"""

from typing import Any

from . import _registry

_registry.load_all(__name__, __path__)
# A public function has the name of its file, and takes its place here.
globals().update({name: op.function for name, op in _registry.ops().items()})
__all__ = sorted(_registry.ops())


def __getattr__(name: str) -> Any:
    raise AttributeError(f"pyfastgan.ops has no op {name!r}; it has {', '.join(__all__)}")
