"""The order of the data."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from toy_system import points

from pyfastgan.data import ImageData
from pyfastgan.training.sampler import Sampler, batches


def take(sampler: Sampler, count: int) -> list[list[int]]:
    return [index.tolist() for index in itertools.islice(sampler, count)]


def test_an_epoch_shows_each_item_at_most_once_and_drops_the_rest() -> None:
    epochs = take(Sampler(10, 3, seed=0), 6)
    for epoch in (epochs[:3], epochs[3:]):
        shown = list(itertools.chain(*epoch))
        assert len(shown) == len(set(shown)) == 9
        assert set(shown) <= set(range(10))
    assert epochs[:3] != epochs[3:]


def test_the_order_is_keyed_by_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = take(Sampler(64, 8, seed=3), 20)
    torch.manual_seed(2)
    assert take(Sampler(64, 8, seed=3), 20) == first
    assert take(Sampler(64, 8, seed=4), 20) != first


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 7])
def test_a_saved_position_is_taken_up(stop: int) -> None:
    whole = take(Sampler(10, 3, seed=0), 12)
    sampler = Sampler(10, 3, seed=0)
    take(sampler, stop)
    resumed = Sampler(10, 3, seed=0)
    resumed.load_state_dict(sampler.state_dict())
    assert take(resumed, 12 - stop) == whole[stop:]


def test_ranks_share_the_batches_of_one() -> None:
    whole = take(Sampler(50, 8, seed=1), 15)
    parts = []
    for rank in range(4):
        sampler = Sampler(50, 8, seed=1)
        sampler.take_part(rank, 4)
        parts.append(take(sampler, 15))
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(
    ("length", "batch", "message"),
    [
        (1, 1, r"has 1 item\(s\), training needs at least 2"),
        (0, 1, r"has 0 item\(s\)"),
        (7, 8, "has 7 items, fewer than batch_size=8"),
    ],
)
def test_too_little_data_is_refused(length: int, batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(length, batch, seed=0)


def test_data_in_memory_and_other_data_give_the_same_batches() -> None:
    held = points(20)

    class Plain:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return held[index]

    device = torch.device("cpu")
    one = batches(held, Sampler(20, 6, seed=0), device)
    other = batches(Plain(), Sampler(20, 6, seed=0), device)  # type: ignore[arg-type]
    for (a,), (b,) in itertools.islice(zip(one, other, strict=True), 7):
        assert a.shape == (6, 2)
        assert torch.equal(a, b)


def test_bytes_become_floats_after_they_are_indexed() -> None:
    images = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    held = ImageData(images, torch.arange(20) % 3)
    index = next(iter(Sampler(20, 6, seed=0)))
    batch, labels = next(batches(held, Sampler(20, 6, seed=0), torch.device("cpu")))
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, images[index].double().div(127.5).sub(1).float())
    assert torch.equal(labels, index % 3)
    stacked = [torch.stack(part) for part in zip(*(held[int(i)] for i in index))]
    assert torch.equal(stacked[0], batch)
    assert torch.equal(stacked[1], labels)
