"""Images of two kinds, in pairs or not: from folders, and made of the images that need no download."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from pyfastgan.data.datasets import ImageData, to_float
from pyfastgan.data.digits import load_digits
from pyfastgan.data.files import Source, _is_image, read_images
from pyfastgan.data.photos import load_photos
from pyfastgan.data.resize import check_size

# Of many files without a partner the error names some.
_NAMED = 10
_HALVES_SEED = 2017
# What a step of brightness must be to be drawn black.
_EDGE = 96.0


class PairData(Dataset[tuple[Tensor, ...]]):
    """Pairs of images: the first is given, the second is to be made of it.

    Args:
        first: (N, C, H, W), uint8, or float32 in [-1, 1]; C = 1 or 3.
        second: (N, C', H, W) likewise.

    Attributes:
        stored: (first, second).
        tensors: None.
        shape, target_shape: of one image of each.

    Raises:
        TypeError, ValueError: Another dtype or shape, images without a partner, differing sizes.
    """

    tensors = None
    classes = None

    def __init__(self, first: Tensor, second: Tensor) -> None:
        _check("first", first)
        _check("second", second)
        if len(first) != len(second):
            raise ValueError(
                f"first and second must be as many, got {len(first)} and {len(second)}"
            )
        _same_size(first, second)
        self.stored = (first, second)
        self.shape, self.target_shape = tuple(first.shape[1:]), tuple(second.shape[1:])

    def __len__(self) -> int:
        return len(self.stored[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """`(first, second)`, float32 in [-1, 1]."""
        return tuple(to_float(part[index]) for part in self.stored)

    def unpaired(self) -> UnpairedData:
        """The first images of one half of the pairs, and the second images of the other half."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(_HALVES_SEED))
        middle = len(self) // 2
        first, second = self.stored
        return UnpairedData(first[order[:middle]], second[order[middle : 2 * middle]])


class UnpairedData(Dataset[tuple[Tensor, ...]]):
    """Images of two kinds without pairs; item i holds images i of both, the fewer over again.

    Arguments, attributes and errors are those of `PairData`, but that the numbers may differ.
    """

    tensors = None
    classes = None

    def __init__(self, first: Tensor, second: Tensor) -> None:
        _check("first", first)
        _check("second", second)
        _same_size(first, second)
        self.images = (first, second)
        self.shape, self.target_shape = tuple(first.shape[1:]), tuple(second.shape[1:])

    def __len__(self) -> int:
        return max(len(part) for part in self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """`(first, second)`, float32 in [-1, 1]."""
        return tuple(to_float(part[index % len(part)]) for part in self.images)


def load_digits2bold(*, size: int = 32, split: str = "all") -> PairData:
    """Digits, and the same digits thick and black on white.

    Args:
        size, split: Those of `load_digits`.

    Returns:
        Pairs of (1, size, size): a pixel of the second is the negative of the brightest within
        max(1, size // 16) pixels.
    """
    digits = load_digits(size=size, split=split).tensors[0]
    reach = max(1, size // 16)
    return PairData(digits, -functional.max_pool2d(digits, 2 * reach + 1, 1, reach))


def load_edges2photos(*, size: int = 32, split: str = "all") -> PairData:
    """Edges of photographs, black on white, and the photographs.

    Args:
        size, split: Those of `load_photos`.

    Returns:
        Pairs of (1, size, size) and (3, size, size). The darker an edge, the larger the brightness's
        Sobel gradient.
    """
    photos = load_photos(size=size, split=split).stored[0]
    return PairData(torch.cat([_edges(part) for part in photos.split(512)]), photos)


def load_pairs(where: str, *, size: int | None = None, split: str = "train") -> PairData:
    """Pairs of images in two folders, matched by their names without suffix.

    Args:
        where: A folder that holds the folders A and B, or trainA and trainB, and perhaps testA and
            testB.
        size: As for `load_folder`; without it all images of both folders must have one size.
        split: "train" (A and B, if there is no trainA) or "test".

    Returns:
        Bytes. A pair of which pillow cannot read a half is left out with a warning.

    Raises:
        ValueError: Folders that are missing or empty, images without a partner (which are named),
            differing sizes without `size`, an unknown split.
    """
    folders = _two_folders("pairs", where, split)
    found = [{_stem(path, folder): path for path in _images(folder)} for folder in folders]
    missing = [
        f"{path.relative_to(path_of.parent)} (nothing in {other.name})"
        for path_of, other, mine, theirs in (
            (folders[0], folders[1], *found),
            (folders[1], folders[0], *found[::-1]),
        )
        for stem, path in mine.items()
        if stem not in theirs
    ]
    if missing:
        more = len(missing) - _NAMED
        named = ", ".join(missing[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(f"{len(missing)} images in {where} have no partner: {named}")
    halves, kept = [], []
    for folder, mine in zip(folders, found, strict=True):
        paths = [mine[stem] for stem in sorted(mine)]
        data, names = _read(folder, paths, size)
        halves.append(data.stored[0])
        kept.append([_stem(folder / name, folder) for name in names])
    both = sorted({*kept[0]} & {*kept[1]})
    if not both:
        raise ValueError(f"no pair of images in {where} can be read")
    chosen = [[stems.index(stem) for stem in both] for stems in kept]
    return PairData(*(half[rows] for half, rows in zip(halves, chosen, strict=True)))


def load_unpaired(where: str, *, size: int | None = None, split: str = "train") -> UnpairedData:
    """Images of two kinds in two folders; arguments and errors are those of `load_pairs`, but that no
    image needs a partner."""
    folders = _two_folders("unpaired", where, split)
    return UnpairedData(*(_read(folder, _images(folder), size)[0].stored[0] for folder in folders))


def _edges(photos: Tensor) -> Tensor:
    """uint8 (N, 1, H, W) of uint8 (N, 3, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
    grey = (photos.float() * weights[:, None, None]).sum(1, keepdim=True)
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([across, across.T])[:, None]
    gradient = functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    strength = gradient.square().sum(1, keepdim=True).sqrt() / _EDGE
    return (255 * (1 - strength.clamp(0, 1))).round().byte()


def _two_folders(kind: str, where: str, split: str) -> tuple[Path, Path]:
    root = Path(where).expanduser()
    if not where or not root.is_dir():
        raise ValueError(f"{kind}:{where} is no folder (write {kind}:PATH)")
    if split not in ("train", "test"):
        raise ValueError(f"split must be one of train, test, got {split!r}")
    names = [(f"{split}A", f"{split}B")]
    if split == "train":
        names.append(("A", "B"))
    for a, b in names:
        here = [(root / name).is_dir() for name in (a, b)]
        if all(here):
            return root / a, root / b
        if any(here):
            raise ValueError(
                f"the folder {root} has {(a, b)[here.index(True)]}"
                f" but no {(a, b)[here.index(False)]}"
            )
    wanted = " nor ".join(" and ".join(pair) for pair in names)
    raise ValueError(f"the folder {root} has no folders {wanted}")


def _images(folder: Path) -> list[Path]:
    paths = [path for path in sorted(folder.rglob("*")) if _is_image(path)]
    if not paths:
        raise ValueError(f"the folder {folder} holds no image")
    return paths


def _stem(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _read(folder: Path, paths: list[Path], size: int | None) -> tuple[ImageData, list[str]]:
    """The images, and the names of those that could be read."""
    check_size(size)
    sources = [
        Source(str(path.relative_to(folder)), functools.partial(Path, path)) for path in paths
    ]
    data = read_images(sources, None, None, size=size, where=f"the folder {folder}")
    skipped = {name for name, _ in data.skipped}
    return data, [source.name for source in sources if source.name not in skipped]


def _check(name: str, images: Tensor) -> None:
    if images.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{name} must be uint8, or float32 in [-1, 1], got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name} must be (N, 1 or 3, H, W) with N > 0, got shape {tuple(images.shape)}"
        )
    if images.dtype == torch.float32:
        low, high = images.aminmax()
        if not -1.001 <= low <= high <= 1.001:  # NaN is neither
            raise ValueError(f"{name} must lie in [-1, 1], got {low:.3g} to {high:.3g}")


def _same_size(first: Tensor, second: Tensor) -> None:
    if first.shape[2:] != second.shape[2:]:
        sizes = [" x ".join(map(str, part.shape[2:])) for part in (first, second)]
        raise ValueError(
            f"first and second must be of one size, got {sizes[0]} and {sizes[1]}:"
            " choose one to resize them to (--image_size, or size= in Python)"
        )
