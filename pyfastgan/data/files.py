"""Images in files: reading many, of which some may be broken, and folders of them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pyfastgan.data.datasets import ImageData
from pyfastgan.data.resize import check_size, to_square

# Of many broken files the warning names some; `ImageData.skipped` has all.
_NAMED = 10
_GREY = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
_NOT_BYTES = ("I", "F")


@dataclass(frozen=True)
class Source:
    """An encoded image.

    Args:
        name: For messages.
        open: Gives what pillow can open: a path, or a file of bytes.
    """

    name: str
    open: Callable[[], Path | IO[bytes]]


def load_folder(where: str, *, size: int | None = None) -> ImageData:
    """The images in a folder, in the order of their names.

    Args:
        where: The folder. Where the images lie in folders inside it (or deeper), these are the
            classes, numbered by their sorted names, as torchvision's ImageFolder has it.
        size: Pixels a side: the middle square of each image is resized to it. By default the
            images stay as they are, and must all have one size.

    Returns:
        Grey images (N, 1, H, W) where all files are grey, else RGB (N, 3, H, W), held as bytes.
        Files that pillow cannot read are left out, and named in a warning and in `.skipped`.
        What has no suffix of an image is not looked at, nor what begins with a dot.

    Raises:
        ValueError: No folder, no image in it or in one of its classes, images beside class
            folders, nothing but broken files, differing sizes without `size`.
    """
    root = Path(where).expanduser()
    if not where or not root.is_dir():
        raise ValueError(f"folder:{where} is no folder (write folder:PATH)")
    check_size(size)
    classes = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."]
    loose = [path for path in sorted(root.iterdir()) if _is_image(path)]
    within = [[path for path in sorted(folder.rglob("*")) if _is_image(path)] for folder in classes]
    if not loose and not any(within):
        raise ValueError(
            f"the folder {root} holds no image (.png, .jpg, .webp, or another that pillow reads)"
        )
    if loose and any(within):
        raise ValueError(
            f"the folder {root} holds images ({loose[0].name}, ...) beside folders of images"
            f" ({next(c.name for c, w in zip(classes, within) if w)}, ...):"
            " put all into class folders or none"
        )
    if loose:
        paths, labels, names = loose, None, None
    else:
        for folder, images in zip(classes, within, strict=True):
            if not images:
                raise ValueError(f"the class folder {folder} holds no image")
        paths = [path for images in within for path in images]
        labels = [index for index, images in enumerate(within) for _ in images]
        names = [folder.name for folder in classes]
    sources = [Source(str(path.relative_to(root)), functools.partial(Path, path)) for path in paths]
    return read_images(sources, labels, names, size=size, where=f"the folder {root}")


def read_images(
    sources: Sequence[Source],
    labels: Sequence[int] | None,
    classes: Sequence[str] | None,
    *,
    size: int | None,
    where: str,
) -> ImageData:
    """Decode images into one tensor of bytes; broken ones are left out with a warning.

    Args:
        sources: The images.
        labels: The class of each, or None.
        classes: The names of the classes, or None.
        size: As for `load_folder`.
        where: What the sources are, for messages.
    """
    # The headers first: they tell the shape, so that the pixels are decoded into their place.
    broken: dict[int, str] = {}
    headers = {}
    for index, source in enumerate(sources):
        try:
            headers[index] = _header(source)
        except Exception as error:  # pillow's decoders raise what they like on broken files
            broken[index] = _reason(error)
    if size is None:
        _same_size({sources[index].name: header[1] for index, header in headers.items()}, where)
    channels = 1 if all(mode in _GREY for mode, _ in headers.values()) else 3
    shape = (size, size) if size is not None else next(iter(headers.values()), ("", (0, 0)))[1]
    images = torch.empty(len(headers), channels, *shape, dtype=torch.uint8)
    good: list[int] = []
    for index in headers:
        try:
            images[len(good)] = to_square(_pixels(sources[index], channels)[None], size)[0]
            good.append(index)
        except Exception as error:
            broken[index] = _reason(error)
    skipped = [(sources[index].name, broken[index]) for index in sorted(broken)]
    if not good:
        raise ValueError(f"{where} holds no image that can be read: {_listed(skipped)}")
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {len(sources)} images in {where} cannot be read and are left out:"
            f" {_listed(skipped)}",
            stacklevel=2,
        )
    kept = None if labels is None else torch.tensor([labels[index] for index in good])
    if kept is not None and classes is not None:
        for label in sorted(set(range(len(classes))) & set(labels or ()) - set(kept.tolist())):
            raise ValueError(
                f"no image of the class {classes[label]!r} in {where} can be read:"
                f" {_listed(skipped)}"
            )
    return ImageData(images[: len(good)], kept, classes=classes, skipped=skipped)


def _header(source: Source) -> tuple[str, tuple[int, int]]:
    """The mode, and (height, width)."""
    from PIL import Image

    with Image.open(source.open()) as image:
        if image.mode in _NOT_BYTES:
            raise ValueError(f"pixels of mode {image.mode} are no bytes")
        return image.mode, (image.height, image.width)


def _pixels(source: Source, channels: int) -> Tensor:
    """uint8 (channels, H, W)."""
    from PIL import Image

    with Image.open(source.open()) as image:
        if image.mode.startswith("I;16"):  # convert() would clip what is above 255
            grey = torch.from_numpy(np.asarray(image).astype(np.int32))
            return ((grey + 128) // 257).byte().expand(channels, -1, -1)
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _same_size(sizes: dict[str, tuple[int, int]], where: str) -> None:
    first: dict[tuple[int, int], str] = {}
    for name, size in sizes.items():
        first.setdefault(size, name)
    if len(first) > 1:
        (a, name_a), (b, name_b) = list(first.items())[:2]
        raise ValueError(
            f"the images in {where} have {len(first)} different sizes ({name_a} is"
            f" {a[0]} x {a[1]}, {name_b} is {b[0]} x {b[1]}): choose one to resize them to"
            " (--image_size, or size= in Python)"
        )


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in _suffixes() and path.is_file()


@functools.cache
def _suffixes() -> tuple[str, ...]:
    """Those of the formats that pillow can read."""
    from PIL import Image

    found: dict[str, Any] = Image.registered_extensions()
    return tuple(sorted(suffix for suffix, kind in found.items() if kind in Image.OPEN))


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image that pillow knows"
    return " ".join(str(error).split()) or type(error).__name__


def _listed(skipped: Iterable[tuple[str, str]]) -> str:
    skipped = list(skipped)
    named = [f"{name} ({reason})" for name, reason in skipped[:_NAMED]]
    more = len(skipped) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
