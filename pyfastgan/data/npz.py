"""Images in a file of numpy arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyfastgan.data.datasets import ImageData, TensorData
from pyfastgan.data.resize import check_size, to_square

IMAGES, LABELS = ("images", "x"), ("labels", "y")


def load_npz(
    where: str,
    *,
    size: int | None = None,
    split: str | None = None,
    value_range: Sequence[float] | None = None,
) -> ImageData | TensorData:
    """Images, and labels where there are any, of an .npz file.

    Args:
        where: The file. It holds `images` or `x`: (N, H, W), (N, H, W, C) or (N, C, H, W) with C =
            1 or 3; and may hold `labels` or `y`: integers (N,). A file with parts has
            `x_train`, `x_test` or `train_images`, `test_images` instead, and labels named alike.
        size: Pixels a side: the middle square of each image of bytes is resized to it.
        split: The part to take where the file has parts; by default "train" of these.
        value_range: What black and white are where the images are floats; an array `range` in the
            file says the same.

    Returns:
        Images held as bytes; as float32 in [-1, 1] where the file holds floats.

    Raises:
        ValueError: No such file, no such array, shapes or labels that do not match, floats outside
            their range or without one, objects (they are never unpickled).
        TypeError: Arrays of another kind.
    """
    check_size(size)
    path = Path(where).expanduser()
    if not where or not path.is_file():
        raise ValueError(f"npz:{where} is no file (write npz:PATH)")
    try:
        with _open(path) as file:
            names = list(file.files)
            images = _array(file, names, IMAGES, split)
            labels = _array(file, names, LABELS, split)
            if "range" in names:
                value_range = file["range"].tolist()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if images is None:
        raise ValueError(
            f"{path} holds no images: expected an array {' or '.join(_keys(IMAGES, split))},"
            f" got {', '.join(names) or 'none'}"
        )
    pixels = _channels_first(torch.from_numpy(images), path)
    classes = None if labels is None else _labels(labels, len(pixels), path)
    if pixels.dtype == torch.uint8:
        return ImageData(to_square(pixels, size).contiguous(), classes)
    if not pixels.is_floating_point():
        raise TypeError(f"the images in {path} must be uint8 or floats, got {images.dtype}")
    if size is not None and tuple(pixels.shape[2:]) != (size, size):
        raise ValueError(
            f"the images in {path} are floats of {pixels.shape[2]} x {pixels.shape[3]}: only bytes"
            f" are resized (to {size})"
        )
    return TensorData(_scaled(pixels, value_range, path), classes)


def has_parts(where: str) -> bool:
    """Whether the file has a test part."""
    with _open(Path(where).expanduser()) as file:
        return any(key in file.files for key in _keys(IMAGES, "test"))


def _open(path: Path) -> np.lib.npyio.NpzFile:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no npz file")
    file: np.lib.npyio.NpzFile = np.load(path, allow_pickle=False)
    return file


def _keys(names: Sequence[str], split: str | None) -> list[str]:
    plain = list(names) if split is None else []
    part = split or "train"
    return [*plain, *(f"{name}_{part}" for name in names), *(f"{part}_{name}" for name in names)]


def _array(
    file: np.lib.npyio.NpzFile, names: list[str], kind: Sequence[str], split: str | None
) -> np.ndarray | None:
    for key in _keys(kind, split):
        if key in names:
            array: np.ndarray = file[key]
            return array
    return None


def _channels_first(images: Tensor, path: Path) -> Tensor:
    shape = tuple(images.shape)
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first and last:
            raise ValueError(f"the shape {shape} of the images in {path} can be read in two ways")
        if first:
            return images
        if last:
            return images.permute(0, 3, 1, 2)
    raise ValueError(
        f"the images in {path} must be (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3,"
        f" got {shape}"
    )


def _labels(labels: np.ndarray, count: int, path: Path) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu":
        raise TypeError(f"the labels in {path} must be integers, got {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(
            f"the labels in {path} do not match its {count} images: their shape is {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _scaled(pixels: Tensor, stated: Sequence[float] | None, path: Path) -> Tensor:
    if stated is None:
        raise ValueError(
            f"the images in {path} are floats: an array `range` in the file (or value_range= in"
            " Python) must say what black and white are, for instance [0, 1]"
        )
    if len(stated) != 2 or not float(stated[0]) < float(stated[1]):
        raise ValueError(f"value_range must be (low, high) with low < high, got {tuple(stated)}")
    low, high = float(stated[0]), float(stated[1])
    found = pixels.aminmax()
    if not (low <= found.min and found.max <= high):
        raise ValueError(
            f"the images in {path} must lie in {low:g} to {high:g},"
            f" got {found.min:g} to {found.max:g}"
        )
    return ((pixels.double() - low) * (2 / (high - low)) - 1).float().contiguous()
