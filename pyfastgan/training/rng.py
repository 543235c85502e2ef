"""The state of every random number generator that training may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(*words: int) -> int:
    """One 63-bit seed from several numbers; different words give unrelated seeds."""
    high, low = np.random.SeedSequence(list(words)).generate_state(2)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch (with all its devices)."""
    random.seed(seed)
    np.random.seed(derive_seed(seed) % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The generators of this process as tensors and plain values, fit for a weights-only load."""
    numpy_state: tuple[Any, ...] = np.random.get_state(legacy=True)  # type: ignore[assignment]  # noqa: NPY002
    name, keys, position, has_gauss, cached = numpy_state
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), keys.tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


@contextmanager
def own_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block on generators seeded for it; those of training are as before when it ends."""
    before = rng_state(device)
    seed_all(seed)
    try:
        yield
    finally:
        set_rng_state(before, device)
