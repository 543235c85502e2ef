"""Our Adam against torch's, bit by bit, in all that makes a step unlike the last."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pyfastgan.training.adam import Adam


def pair() -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    nets = net, copy.deepcopy(net)
    settings = (1e-2, (0.5, 0.9))
    return [
        (nets[0], Adam(nets[0].parameters(), *settings)),
        (nets[1], torch.optim.Adam(nets[1].parameters(), *settings, fused=True)),
    ]


def step(
    players: list[tuple[nn.Module, torch.optim.Optimizer]], number: int, without: int = -1
) -> None:
    for net, optimizer in players:
        torch.manual_seed(number)
        for k, p in enumerate(net.parameters()):
            p.grad = None if k == without else torch.randn_like(p)
        optimizer.step()
    for one, two in zip(players[0][0].parameters(), players[1][0].parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_same_bits() -> None:
    players = pair()
    for number in range(4):
        step(players, number)
    step(players, 4, without=2)
    for group in (players[0][1].param_groups[0], players[1][1].param_groups[0]):
        group["lr"], group["weight_decay"] = 1e-3, 0.1
    for number in range(5, 8):
        step(players, number)


def test_loaded_state_takes_the_place_of_what_was_kept() -> None:
    players = pair()
    for number in range(3):
        step(players, number)
    states = [copy.deepcopy(optimizer.state_dict()) for _, optimizer in players]
    for number in range(3, 6):
        step(players, number)
    for (_, optimizer), state in zip(players, states, strict=True):
        optimizer.load_state_dict(state)
    for number in range(6, 9):
        step(players, number)
    one, two = (optimizer.state_dict()["state"] for _, optimizer in players)
    for k in one:
        assert one[k].keys() == two[k].keys()
        assert all(torch.equal(one[k][name], two[k][name]) for name in one[k])


def test_scaled_gradients_and_closures_are_torchs() -> None:
    players = pair()
    step(players, 0)
    step(players, 1)
    for net, optimizer in players:
        torch.manual_seed(2)
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        assert optimizer.step(lambda: 3.0) == 3.0
    step(players, 3)
