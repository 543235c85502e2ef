"""MNIST and CIFAR as torchvision and their authors lay them out on disk."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfastgan.data.datasets import ImageData
from pyfastgan.data.resize import check_size, to_square

SPLITS = ("train", "test")
_CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def load_mnist(root: str, *, size: int | None = None, split: str = "train") -> ImageData:
    """MNIST, or what has its format (Fashion-MNIST, KMNIST): four idx files, plain or gzipped.

    Args:
        root: The folder of the files, or one with `raw` or `MNIST/raw` in it.
        size: Pixels a side; the originals have 28.
        split: "train" or "test".

    Returns:
        Images (N, 1, 28, 28), black paper, with labels.

    Raises:
        ValueError: Files that are missing or broken, an unknown split.
    """
    _check(size, split)
    start = {"train": "train", "test": "t10k"}[split]
    images = _idx(_find_idx(root, f"{start}-images-idx3-ubyte"), 3)
    labels = _idx(_find_idx(root, f"{start}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise ValueError(f"mnist:{root} holds {len(images)} images but {len(labels)} labels")
    return ImageData(to_square(images[:, None], size), labels.long(), classes=10)


def _find_idx(root: str, name: str) -> Path:
    folders = [Path(root).expanduser() / part for part in ("", "raw", "MNIST/raw")]
    # Some archives have a dot before idx.
    names = [name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"]
    for folder in folders:
        for each in names:
            if root and (folder / each).is_file():
                return folder / each
    raise ValueError(f"mnist:{root} holds no {name} or {name}.gz (looked also in MNIST/raw, raw)")


def _idx(path: Path, dimensions: int) -> Tensor:
    """The bytes of an idx file: magic 0 0 8 d, d big-endian sizes, then the values."""
    try:
        content = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    except (OSError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is no idx file of bytes in {dimensions} dimensions")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) - start != int(np.prod(shape, dtype=object)):
        raise ValueError(
            f"{path} is broken: its header says {' x '.join(map(str, shape))},"
            f" but {len(content) - start} bytes follow"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


def load_cifar10(root: str, *, size: int | None = None, split: str = "train") -> ImageData:
    """CIFAR-10: the folder `cifar-10-batches-py` or `cifar-10-batches-bin`, or one with it inside.

    Args:
        root: The folder.
        size: Pixels a side; the originals have 32.
        split: "train" or "test".

    Returns:
        Images (N, 3, 32, 32) with labels.

    Raises:
        ValueError: Files that are missing or broken, a pickle that holds more than plain data, an
            unknown split.
    """
    _check(size, split)
    parts = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    images, labels = _cifar("cifar10", root, "cifar-10-batches", parts, "labels", label_bytes=1)
    return ImageData(to_square(images, size), labels, classes=_CIFAR10)


def load_cifar100(root: str, *, size: int | None = None, split: str = "train") -> ImageData:
    """CIFAR-100 with its fine labels: `cifar-100-python`, `cifar-100-binary`, or what holds it.

    Arguments, result and errors are those of `load_cifar10`.
    """
    _check(size, split)
    images, labels = _cifar("cifar100", root, "cifar-100", [split], "fine_labels", label_bytes=2)
    return ImageData(to_square(images, size), labels, classes=100)


def _cifar(
    kind: str, root: str, folder: str, parts: list[str], labels: str, *, label_bytes: int
) -> tuple[Tensor, Tensor]:
    """Images and labels of all parts, from pickles or else from the binary version."""
    base = Path(root).expanduser()
    for pickled, suffix in ((True, ""), (False, ".bin")):
        ends = ("-py", "-python") if pickled else ("-bin", "-binary")
        for place in (base, *(base / f"{folder}{end}" for end in ends)):
            paths = [place / f"{part}{suffix}" for part in parts]
            if root and paths[0].is_file():
                read = [
                    _pickled(path, labels) if pickled else _binary(path, label_bytes)
                    for path in paths
                ]
                images, numbers = (torch.cat(column) for column in zip(*read, strict=True))
                return images.view(-1, 3, 32, 32), numbers
    raise ValueError(f"{kind}:{root} holds no {parts[0]} or {parts[0]}.bin (looked in {folder}-*)")


def _binary(path: Path, label_bytes: int) -> tuple[Tensor, Tensor]:
    content, row = _bytes(path), label_bytes + 3072
    if not content or len(content) % row:
        raise ValueError(f"{path} is broken: {len(content)} bytes are no multiple of {row}")
    rows = torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(-1, row)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].long()


def _pickled(path: Path, labels: str) -> tuple[Tensor, Tensor]:
    try:
        with open(path, "rb") as file:
            batch = _PlainUnpickler(file, encoding="latin1").load()
        images, numbers = batch["data"].values, np.asarray(batch[labels])
    except KeyError as error:
        raise ValueError(f"{path} has no entry {error}") from None
    except Exception as error:  # a broken pickle can raise anything
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if images.ndim != 2 or images.shape[1] != 3072:
        raise ValueError(f"{path} is broken: its data must be (N, 3072), got {images.shape}")
    if numbers.dtype.kind != "i" or numbers.shape != images.shape[:1]:
        raise ValueError(
            f"{path} holds {len(images)} images, but its labels are {numbers.shape} {numbers.dtype}"
        )
    return torch.from_numpy(images.copy()), torch.from_numpy(numbers).long()


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dictionaries and arrays of bytes.

    What else a pickle names is refused. numpy's own functions are not called either, since the
    state of a pickled dtype can make one that reads foreign memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        plain = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("numpy.multiarray", "_reconstruct"): lambda kind, shape, code: _Array(),
            ("numpy.numeric", "_frombuffer"): _array_of,
            ("_codecs", "encode"): _encode,
        }
        short = re.sub(r"^numpy\._?core\.", "numpy.", module)
        if (short, name) not in plain:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")
        return plain[short, name]


class _Dtype:
    """Stands for the dtype in a pickle, which must be that of bytes."""

    def __init__(self, code: str, *_: object) -> None:
        if code.lstrip("|") != "u1":
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of bytes (u1)")

    def __setstate__(self, state: object) -> None:
        """The byte order and the like, which say nothing about bytes."""


class _Array:
    """Stands for the array in a pickle; `values` has its content."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, fortran, content = state
        content = content if isinstance(content, bytes) else content.encode("latin1")
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _array_of(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """How pickles of protocol 5 hold an array."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(content)))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _check(size: int | None, split: str) -> None:
    check_size(size)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
