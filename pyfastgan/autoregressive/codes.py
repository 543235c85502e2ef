"""The codes of another family's run, which a prior is trained on.

Families meet through files. The folder of a run that quantises images holds `codes.safetensors`:

    train         int64 (N, h, w), the indices of the training images' codes, each in [0, K)
    test          int64 (M, h, w), of images held out; may be absent
    train_top     int64 (N, h', w'), of a model with two levels their coarser codes, also in [0, K)
    test_top      int64 (M, h', w'); there if and only if there are `test` and `train_top`
    labels_train  int64 (N,), the classes of the training images; may be absent
    labels_test   int64 (M,); may be absent
    metadata      codes = K

and the run's family has `decode(run, codes) -> images (N, C, H, W) in [-1, 1]`, which of two levels
takes a pair, the coarser codes first.
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
        top: The coarser codes of two levels, int64 (N, h', w') in [0, count), or None.

    Attributes:
        tensors: (codes, labels or None). Of two levels the codes are rows (N, h' w' + h w), the coarser
            ones first, as `TwoLevelPrior` has them.
        shape: (h, w).
        top_shape: (h', w'), or None.
        count: K.
        classes: The largest label + 1, or None without labels.

    Raises:
        ValueError: Another dtype or shape, no maps, an index out of range.
    """

    def __init__(
        self,
        codes: Tensor,
        labels: Tensor | None,
        count: int,
        where: str,
        top: Tensor | None = None,
    ) -> None:
        _check_maps(codes, count, where)
        if top is not None:
            _check_maps(top, count, f"{where}_top")
            if len(top) != len(codes):
                raise ValueError(
                    f"{where}_top must hold as many maps as {where}, {len(codes)}, got {len(top)}"
                )
        if labels is not None and (
            labels.dtype != torch.int64 or labels.shape != codes.shape[:1] or labels.min() < 0
        ):
            raise ValueError(
                f"the labels of {where} must be int64 of shape ({len(codes)},) and not negative,"
                f" got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        rows = codes if top is None else torch.cat((top.flatten(1), codes.flatten(1)), 1)
        self.tensors = (rows, labels)
        self.shape = tuple(codes.shape[1:])
        self.top_shape = None if top is None else tuple(top.shape[1:])
        self.count = count
        self.classes = None if labels is None else int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """`(codes,)` or `(codes, label)`; for a tensor of indices, a batch."""
        return tuple(part[index] for part in self.tensors if part is not None)


def _check_maps(codes: Tensor, count: int, where: str) -> None:
    if codes.dtype != torch.int64 or codes.ndim != 3 or 0 in codes.shape:
        raise ValueError(
            f"{where} must be int64 of shape (N, h, w) with N > 0,"
            f" got {codes.dtype} of shape {tuple(codes.shape)}"
        )
    low, high = (int(bound) for bound in codes.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{where} must lie in [0, {count}), got {low} to {high}")


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
    found = [name for name in ("train", "test") if name in tensors]
    if len({f"{name}_top" in tensors for name in found}) > 1:
        raise ValueError(
            f"{path}: train and test must both have the codes of a top level, or neither"
        )
    parts = [
        Codes(
            tensors[name],
            tensors.get(f"labels_{name}"),
            int(count),
            f"{path}: {name}",
            tensors.get(f"{name}_top"),
        )
        for name in found
    ]
    first = parts[0]
    if {(part.shape, part.top_shape) for part in parts} != {(first.shape, first.top_shape)}:
        raise ValueError(f"{path}: test must be of the shape of train, {first.shape}")
    return first, parts[1] if len(parts) > 1 else None
