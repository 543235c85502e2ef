"""The order of the data: a function of (seed, epoch), with a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pyfastgan.data.datasets import to_float
from pyfastgan.training.rng import derive_seed

# A data set held in memory is copied to the device when it is smaller than this.
_ON_DEVICE_BYTES = 2**30
_DATA_STREAM = 1


class Sampler:
    """Shuffled batches of indices without end; the last, incomplete batch of an epoch is dropped.

    Every rank sees the same global batches and takes its own slice of each, so the order does not
    depend on their number.

    Args:
        length: Items in the data set.
        batch_size: Items in a global batch.
        seed: Key of the order, with the epoch.

    Raises:
        ValueError: Fewer than two items, or fewer than one batch.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        if length < 2:
            raise ValueError(f"the data set has {length} item(s), training needs at least 2")
        if length < batch_size:
            raise ValueError(
                f"the data set has {length} items, fewer than batch_size={batch_size}"
                f" (incomplete batches are dropped); use a batch_size of at most {length}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._part = slice(0, batch_size)
        self.epoch = 0
        self.position = 0  # batches of this epoch already given out
        self._order: Tensor | None = None

    def take_part(self, rank: int, ranks: int) -> None:
        """Give out this rank's slice of every batch; `ranks` must divide the batch size."""
        size = self.batch_size // ranks
        self._part = slice(rank * size, (rank + 1) * size)

    def order(self) -> Tensor:
        """The permutation of this epoch, int64 of shape (length,)."""
        if self._order is None:
            key = derive_seed(self.seed, _DATA_STREAM, self.epoch)
            generator = torch.Generator().manual_seed(key)
            self._order = torch.randperm(self.length, generator=generator)
        return self._order

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """The indices of this rank's part of the next global batch."""
        if (self.position + 1) * self.batch_size > self.length:
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        start = self.position * self.batch_size
        self.position += 1
        return self.order()[start : start + self.batch_size][self._part]

    def state_dict(self) -> dict[str, int]:
        """The epoch and the position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up where `state_dict` was called."""
        self.epoch, self.position, self._order = state["epoch"], state["position"], None


def batches(
    dataset: Dataset[Any], sampler: Sampler, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Batches on `device`, as tuples of tensors of shape (batch, ...), without end.

    A data set with `tensors`, or with `stored` bytes, is indexed whole; of any other, the items
    (tuples of tensors) are stacked.
    """
    held = getattr(dataset, "tensors", None) or getattr(dataset, "stored", None)
    if held is None:
        for index in sampler:
            items = default_collate([dataset[i] for i in index.tolist()])
            yield tuple(item.to(device, non_blocking=True) for item in items)
        return
    tensors = [tensor for tensor in held if tensor is not None]
    if sum(tensor.nbytes for tensor in tensors) <= _ON_DEVICE_BYTES:
        tensors = [tensor.to(device) for tensor in tensors]
    home = tensors[0].device
    for index in sampler:
        index = index.to(home, non_blocking=True)
        yield tuple(
            to_float(tensor.index_select(0, index).to(device, non_blocking=True))
            for tensor in tensors
        )
