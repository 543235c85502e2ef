"""Models of other libraries made faster in place: `pyfastgan.accelerate(model)`.

One file a library. It is imported only where the library itself has been, since a model of it exists.
"""

from .report import AccelerateReport, Replaced, Skipped
from .walk import accelerate

__all__ = ["AccelerateReport", "Replaced", "Skipped", "accelerate"]
