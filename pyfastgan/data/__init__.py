"""Data that needs no download (real digits, 2-D toys), and wrappers for the caller's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyfastgan._names import nearest
from pyfastgan.data.datasets import MapData, TensorData
from pyfastgan.data.digits import load_digits
from pyfastgan.data.toys import TOYS, Toy, load_toy

__all__ = ["TOYS", "MapData", "TensorData", "Toy", "descriptions", "load", "names"]


def names() -> list[str]:
    """The names that `load` understands."""
    return ["digits", *TOYS]


def descriptions() -> dict[str, str]:
    """What each name of `names()` stands for, in a line."""
    return {
        "digits": "1,797 handwritten digits, 8x8 grey, resized to any size",
        **{name: toy.formula for name, toy in TOYS.items()},
    }


def load(source: Any, **options: Any) -> TensorData | MapData:
    """Load data by name, or wrap the caller's own.

    Args:
        source: A name of `names()`; a tensor of images or points; a pair (images, labels); or a
            map-style data set whose items are tuples of tensors. A `TensorData` or `MapData` is
            returned as it is.
        options: For a name only. Digits: `size`, `split`. Toys: `count`, `seed`.

    Returns:
        A data set of tuples `(image,)` or `(image, label)`.

    Raises:
        ValueError: An unknown name or option (with the nearest one and the list), or data out of
            range.
        TypeError: Data of another kind.
    """
    if isinstance(source, str):
        if source not in names():
            raise ValueError(
                f"unknown data set {source!r}{nearest(source, names())}"
                f" (known: {', '.join(names())})"
            )
        if source == "digits":
            return _call(load_digits, source, options)
        return _call(load_toy, source, options, TOYS[source])
    if options:
        raise ValueError(f"options are for data sets by name, got {', '.join(options)}")
    if isinstance(source, (TensorData, MapData)):
        return source
    if isinstance(source, Tensor):
        return TensorData(source)
    if isinstance(source, (tuple, list)):
        if len(source) != 2 or not all(isinstance(part, Tensor) for part in source):
            raise TypeError("a pair of data must be two tensors, (images, labels)")
        return TensorData(*source)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return MapData(source)
    raise TypeError(
        "data must be a name, a tensor, a pair of tensors or a map-style data set,"
        f" got {type(source).__name__}"
    )


def _call(
    loader: Callable[..., TensorData], name: str, options: dict[str, Any], *args: Any
) -> TensorData:
    known = [
        key
        for key, parameter in inspect.signature(loader).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for key in options:
        if key not in known:
            raise ValueError(
                f"the data set {name!r} has no option {key!r}{nearest(key, known)}"
                f" (known: {', '.join(known)})"
            )
    return loader(*args, **options)
