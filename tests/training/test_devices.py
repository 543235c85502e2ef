"""A step calls its network past Fabric's wrapper only where that changes nothing."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from pyfastgan.training.devices import direct


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_the_wrapper_is_passed_by_where_it_does_nothing(precision: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    network, x = nn.Linear(2, 2), torch.ones(3, 2)
    wrapped = fabric.setup_module(network)
    called = direct(fabric, wrapped)
    assert called is (network if precision == "32-true" else wrapped)
    assert torch.equal(called(x), wrapped(x))
