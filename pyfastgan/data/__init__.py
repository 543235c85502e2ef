"""Data that needs no download (real digits, photographs, 2-D toys), data on disk, and wrappers for
the caller's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyfastgan._names import nearest
from pyfastgan.data.datasets import ImageData, MapData, TensorData
from pyfastgan.data.digits import load_digits
from pyfastgan.data.files import load_folder
from pyfastgan.data.hub import has_test_split, load_hub
from pyfastgan.data.mnist_cifar import load_cifar10, load_cifar100, load_mnist
from pyfastgan.data.npz import has_parts, load_npz
from pyfastgan.data.pairs import (
    PairData,
    UnpairedData,
    load_digits2bold,
    load_edges2photos,
    load_pairs,
    load_unpaired,
)
from pyfastgan.data.photos import load_photos
from pyfastgan.data.shapes import load_shapes, shape_factors
from pyfastgan.data.stacked import load_stacked_digits, load_stacked_mnist
from pyfastgan.data.toys import TOYS, Toy, load_toy

__all__ = [
    "BUILT_IN",
    "OWN",
    "TOYS",
    "ImageData",
    "MapData",
    "PairData",
    "TensorData",
    "Toy",
    "UnpairedData",
    "descriptions",
    "has_splits",
    "load",
    "load_square",
    "names",
    "shape_factors",
]

# What a configuration says about data that were handed over as an object.
OWN = "given in Python"
# What needs no files, by its name...
_BUILT_IN: dict[str, Callable[..., Any]] = {
    "digits": load_digits,
    "photos": load_photos,
    "digits2bold": load_digits2bold,
    "edges2photos": load_edges2photos,
    "stacked-digits": load_stacked_digits,
    "shapes": load_shapes,
}
BUILT_IN = tuple(_BUILT_IN)
# ... and what is elsewhere, by a kind, a colon and the place.
_ELSEWHERE: dict[str, Callable[..., Any]] = {
    "folder": load_folder,
    "npz": load_npz,
    "mnist": load_mnist,
    "stacked-mnist": load_stacked_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "hf": load_hub,
    "pairs": load_pairs,
    "unpaired": load_unpaired,
}


def names() -> list[str]:
    """The names that `load` understands; after one that ends in a colon comes a place."""
    return [*_BUILT_IN, *(f"{kind}:" for kind in _ELSEWHERE), *TOYS]


def descriptions() -> dict[str, str]:
    """What each name of `names()` stands for, in a line."""
    return {
        "digits": "1,797 handwritten digits, 8x8 grey, resized to any size",
        "photos": "square crops of two photographs, colour, cut at any size",
        "digits2bold": "pairs: a digit, and the same thick and black on white",
        "edges2photos": "pairs: the edges of a photograph, and the photograph",
        "stacked-digits": "three digits in the channels of one image: 1,000 modes",
        "shapes": "6,144 drawn shapes with five known factors, grey, of any size",
        "folder:": "PATH: images in a folder, in class folders or not",
        "npz:": "PATH: numpy arrays `images` or `x`, `labels` or `y`",
        "mnist:": "ROOT: MNIST's idx files, or others of that format",
        "stacked-mnist:": "ROOT: three MNIST digits in the channels of one image",
        "cifar10:": "ROOT: CIFAR-10, the python or the binary version",
        "cifar100:": "ROOT: CIFAR-100, the python or the binary version",
        "hf:": "NAME: a data set of the Hugging Face hub (needs `datasets`)",
        "pairs:": "PATH: pairs of images in the folders A and B, or trainA and trainB",
        "unpaired:": "PATH: images of two kinds in such folders, without pairs",
        **{name: toy.formula for name, toy in TOYS.items()},
    }


def has_splits(name: str) -> bool:
    """Whether the data set of that name has a training and a test split."""
    kind, _, where = name.partition(":")
    if kind == "npz":
        return has_parts(where)
    if kind == "hf":
        return has_test_split(where)
    return kind in (*BUILT_IN, "mnist", "cifar10", "cifar100", "stacked-mnist")


def load(source: Any, **options: Any) -> TensorData | ImageData | MapData | Any:
    """Load data by name, or wrap the caller's own.

    Args:
        source: A name of `names()` ("digits:train" is a split of "digits"); a tensor of images or
            points; a pair (images, labels); or a map-style data set whose items are tuples of
            tensors. What is a data set of this package already is returned as it is.
        options: For a name only. Images: `size`, and `split` where there are splits. An npz file:
            `value_range`. Toys: `count`, `seed`.

    Returns:
        A data set of tuples `(image,)` or `(image, label)`; of two kinds of images, `(image, image)`.

    Raises:
        ValueError: An unknown name or option (with the nearest one and the list), data out of
            range, files that are missing or broken.
        TypeError: Data of another kind.
    """
    if isinstance(source, str):
        if source == OWN:
            raise ValueError("the data were the caller's own: name a data set, or hand them over")
        kind, colon, where = source.partition(":")
        if colon and kind in _ELSEWHERE:
            return _call(_ELSEWHERE[kind], f"{kind}:", options, where)
        if kind in _BUILT_IN:
            if colon:
                options = {"split": where, **options}
            return _call(_BUILT_IN[kind], kind, options)
        if source in TOYS:
            return _call(load_toy, source, options, TOYS[source])
        if source in _ELSEWHERE:
            raise ValueError(f"the data set {source!r} needs a place: {source}:PLACE")
        raise ValueError(
            f"unknown data set {source!r}{nearest(source, names())} (known: {', '.join(names())})"
        )
    if options:
        raise ValueError(f"options are for data sets by name, got {', '.join(options)}")
    if isinstance(source, (TensorData, ImageData, MapData, PairData, UnpairedData)):
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


def load_square(name: str, size: int | None, **options: Any) -> Any:
    """The data set of that name, whose images are square: `size` pixels a side, or as many as their
    shorter side has. Points are as they are."""
    if name in TOYS:
        return load(name, **options)
    if size is None:
        dataset = load(name, **options)
        if len(dataset.shape) != 3 or dataset.shape[1] == dataset.shape[2]:
            return dataset
        size = min(dataset.shape[1:])
    # At once in that size: those of a folder may be of several.
    return load(name, size=size, **options)


def _call(loader: Callable[..., Any], name: str, options: dict[str, Any], *args: Any) -> Any:
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
