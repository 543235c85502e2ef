"""The codes of another family's run, which a prior is trained on.

Families meet through files. The folder of a run that quantises images holds `codes.safetensors`:

    train         int64 (N, h, w), the indices of the training images' codes, each in [0, K)
    test          int64 (M, h, w), of images held out; may be absent
    labels_train  int64 (N,), the classes of the training images; may be absent
    labels_test   int64 (M,); may be absent
    metadata      codes = K

and the run's family has `decode(run, codes) -> images (N, C, H, W) in [-1, 1]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

FILE = "codes.safetensors"


class Codes(Dataset[tuple[Tensor, ...]]):
    """Maps of codes, held in memory.

    Args:
        codes: int64 (N, h, w) in [0, count).
        labels: int64 (N,), or None.
        count: K, the size of the codebook.
        where: What the messages call them.

    Attributes:
        tensors: (codes, labels or None).
        shape: (h, w).
        count: K.
        classes: The largest label + 1, or None without labels.

    Raises:
        ValueError: Another dtype or shape, no maps, an index out of range.
    """

    def __init__(self, codes: Tensor, labels: Tensor | None, count: int, where: str) -> None:
        if codes.dtype != torch.int64 or codes.ndim != 3 or 0 in codes.shape:
            raise ValueError(
                f"{where} must be int64 of shape (N, h, w) with N > 0,"
                f" got {codes.dtype} of shape {tuple(codes.shape)}"
            )
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"{where} must lie in [0, {count}), got {low} to {high}")
        if labels is not None and (
            labels.dtype != torch.int64 or labels.shape != codes.shape[:1] or labels.min() < 0
        ):
            raise ValueError(
                f"the labels of {where} must be int64 of shape ({len(codes)},) and not negative,"
                f" got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        self.tensors = (codes, labels)
        self.shape = tuple(codes.shape[1:])
        self.count = count
        self.classes = None if labels is None else int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """`(codes,)` or `(codes, label)`; for a tensor of indices, a batch."""
        return tuple(part[index] for part in self.tensors if part is not None)


def load_codes(run: str | Path) -> tuple[Codes, Codes | None]:
    """The codes of a run's training images, and of those held out where it has them.

    Raises:
        ValueError: A folder without codes, a file that cannot be read or does not hold what the
            module says.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(run) / FILE
    if not path.is_file():
        raise ValueError(
            f"{run} holds no codes (it has no {FILE}): it must be a run of a model that quantises"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            count = (file.metadata() or {}).get("codes", "")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read the codes {path}: {error}") from None
    if not count.isdecimal() or int(count) < 2:
        raise ValueError(f"{path}: the metadata `codes` must be at least 2, got {count!r}")
    if "train" not in tensors:
        raise ValueError(f"{path} must hold `train`, got {', '.join(sorted(tensors)) or 'nothing'}")
    parts = [
        Codes(tensors[name], tensors.get(f"labels_{name}"), int(count), f"{path}: {name}")
        for name in ("train", "test")
        if name in tensors
    ]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"{path}: test must be of the shape of train, {parts[0].shape}")
    return parts[0], parts[1] if len(parts) > 1 else None
