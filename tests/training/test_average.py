"""The moving average against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyfastgan.training.average import WeightAverage


def test_it_follows_the_definition_for_parameters_and_statistics() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = WeightAverage({"net": net}, decay=0.5)
    expected = {key: value.double() for key, value in net.state_dict().items()}
    for step in range(1, 20):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
        net(torch.randn(8, 2))
        average.update(step)
        d = min(0.5, step / (9 + step))
        for key, value in net.state_dict().items():
            expected[key] = d * expected[key] + (1 - d) * value.double()
    current = average.current()["net"].state_dict()
    for key, value in current.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    assert current["1.num_batches_tracked"] == 19, "counters are copied"


def test_no_averaging_means_the_current_weights() -> None:
    net = nn.Linear(2, 2)
    average = WeightAverage({"net": net}, decay=0.0)
    with torch.no_grad():
        net.weight.normal_()
    average.update(1)
    assert torch.equal(average.current()["net"].get_parameter("weight"), net.weight)


def test_tied_parameters_move_once_and_stay_tied() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    average = WeightAverage({"net": net}, decay=0.9)
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight += 1
    average.update(1)
    copy = average.current()["net"]
    assert copy.get_parameter("0.weight") is copy.get_parameter("1.weight")
    torch.testing.assert_close(copy.get_parameter("0.weight"), before + 0.9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_any_type_are_averaged_in_float32(dtype: torch.dtype) -> None:
    # Steps of 1e-3 of the distance vanish in the 8 bits of a bfloat16.
    net = nn.Linear(1, 1).to(dtype)
    nn.init.ones_(net.weight)
    average = WeightAverage({"net": net}, decay=0.999)
    with torch.no_grad():
        net.weight.fill_(2)
    for step in range(10**6, 10**6 + 3):
        average.update(step)
    weight = average.current()["net"].get_parameter("weight")
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(2 - 0.999**3, abs=1e-6)


def test_copies_are_for_sampling_only() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    copy = WeightAverage({"net": net}, decay=0.9).current()["net"]
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
