"""`accelerate`: finds the parts of a model that an op serves, and gives each a class that calls the op."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from . import torch_forwards
from .report import AccelerateReport, Replaced, Skipped
from .swap import Library, Swap, refused

# The files here, by the name under which their library is imported.
_FILES = {
    "nflows": "nflows",
    "normflows": "normflows",
    "zuko": "zuko",
    "FrEIA": "freia",
    "vector_quantize_pytorch": "vector_quantize",
    "diffusers": "diffusers",
    "torch": "torch_modules",
}


def _libraries() -> tuple[dict[str, Library], dict[str, str]]:
    """The libraries that have been imported, and why some of them cannot be served."""
    found, missing = {}, {}
    for name, file in _FILES.items():
        if name in sys.modules:
            try:
                found[name] = importlib.import_module(f"{__package__}.{file}").LIBRARY
            except (ImportError, AttributeError) as error:
                missing[name] = f"this version of {name} is not known: {error}"
    return found, missing


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Everything that could be served, once each, with its name."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()
        return
    root = type(model).__module__.split(".")[0]
    bases = {base.__module__.split(".")[0] for base in type(model).__mro__}
    if "diffusers" in bases:
        # A pipeline, which is no module itself, or a scheduler.
        components = getattr(model, "components", None)
        if not isinstance(components, dict):
            yield "", model
            return
        for name, component in components.items():
            if isinstance(component, nn.Module):
                for inner, part in component.named_modules():
                    yield f"{name}.{inner}" if inner else name, part
            elif component is not None:
                yield name, component
        return
    raise TypeError(
        "model must be a torch.nn.Module, or a pipeline or scheduler of diffusers, "
        f"got {root}.{type(model).__name__}"
    )


def accelerate(model: Any) -> AccelerateReport:
    """Serves the parts of a model of another library by pyfastgan's ops, in place.

    Parts of nflows, normflows, zuko, FrEIA, vector-quantize-pytorch and diffusers, convolutions with what follows
    them in `nn.Sequential`, and norms that an activation follows in a `forward` of your own, get a class that computes
    the same numbers sooner: a subclass of the one they had, under its name. Parameters, buffers, hooks and the keys of
    the state stay, so that optimizers that hold them keep working; copies and pickles are accelerated, too. A call
    twice changes nothing.

    Args:
        model: an `nn.Module`, or a pipeline or a scheduler of diffusers.

    Returns:
        What was replaced by which op, what was left alone and why, and `revert()`.

    Raises:
        TypeError: `model` is something else.
    """
    libraries, missing = _libraries()
    swaps: dict[type, Swap] = {}
    for library in libraries.values():
        swaps |= library.swaps
    fast = {swap.fast for swap in swaps.values()}
    report = AccelerateReport()
    for name, part in list(_parts(model)):
        kind = type(part)
        if kind in fast or isinstance(part, torch_forwards.First):
            report.skipped.append(Skipped(name, kind.__name__, "it is accelerated already"))
            continue
        swap = swaps.get(kind)
        reason = _reason(part, swap, swaps, libraries, missing)
        if swap is not None and not reason:
            for child, module, why in swap.apart(part):
                where = f"{name}.{child}" if name else child
                report.skipped.append(Skipped(where, type(module).__name__, why))
        if reason:
            report.skipped.append(Skipped(name, kind.__name__, reason))
        elif swap is not None and reason is None:
            part.__class__ = swap.fast
            report.replaced.append(Replaced(name, kind.__name__, swap.op))
            report._swapped.append((part, kind, swap.fast))
    for name, part in list(_parts(model)):
        known = type(part) in swaps or type(part) in fast
        if isinstance(part, nn.Module) and not known and torch_forwards.own_forward(part):
            _serve_forward(name, part, report)
    return report


def _serve_forward(name: str, owner: nn.Module, report: AccelerateReport) -> None:
    """Swaps the parts of a forward of somebody's own that can be served, and then the module itself, too."""
    served = False
    for inner, part, reason in list(torch_forwards.find(owner)):
        where, kind = ".".join(filter(None, (name, inner))), type(part)
        if reason is not None:
            report.skipped.append(Skipped(where, kind.__name__, reason))
            continue
        served = True
        if not isinstance(part, torch_forwards.First):
            convolution = isinstance(part, torch_forwards.CONVOLUTIONS)
            report.replaced.append(Replaced(where, kind.__name__, torch_forwards.OPS[convolution]))
            _give(part, torch_forwards.First, report)
    if served:
        _give(owner, torch_forwards.Owner, report)


def _give(part: nn.Module, mixin: type, report: AccelerateReport) -> None:
    kind: Any = type(part)
    part.__class__ = torch_forwards.fast_class(mixin, kind)
    report._swapped.append((part, kind, type(part)))


def _reason(
    part: Any,
    swap: Swap | None,
    swaps: dict[type, Swap],
    libraries: dict[str, Library],
    missing: dict[str, str],
) -> str | None:
    """Why a part is left alone; None if it can be served or is no concern, "" if it needs no word."""
    if swap is not None:
        # What has nothing to serve needs no other reason.
        reason = swap.refuses(part)
        return reason if reason == "" else refused(part) or reason
    kind = type(part)
    for base in kind.__mro__[1:]:
        if base in swaps and swaps[base].refuses(part) != "":
            return f"it is a subclass of {base.__name__} and may compute something else"
    root = kind.__module__.split(".")[0]
    if root in missing:
        return missing[root]
    library = libraries.get(root)
    if library and isinstance(part, library.named) and kind not in library.silent:
        return "no op serves it"
    return None
