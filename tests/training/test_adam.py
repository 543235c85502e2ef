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


def test_gradients_of_other_parameters_step_by_step() -> None:
    players = pair()
    for number, without in enumerate((0, 0, 2, 2, -1, -1)):
        step(players, number, without)


def test_layouts_of_memory() -> None:
    """Channels-last weights, one of them with one channel, and gradients in either layout."""
    torch.manual_seed(0)
    shapes = (4, 3, 2, 2), (3, 1, 4, 4), (5,)
    values = [torch.randn(shape) for shape in shapes]
    plain = [nn.Parameter(v.clone()) for v in values]
    form = {4: torch.channels_last, 1: torch.contiguous_format}
    ours = [nn.Parameter(v.clone(memory_format=form[v.dim()])) for v in values]
    optimizers = Adam(ours, 1e-2), torch.optim.Adam(plain, 1e-2, fused=True)
    for number in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for p, q in zip(ours, plain, strict=True):
            assert p.grad is None
            assert q.grad is None
            q.grad = torch.randn_like(q)
            # The first step is torch's own, which takes memory as it lies.
            p.grad = q.grad.clone() if number == 3 else torch.empty_like(p).copy_(q.grad)
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(ours, plain, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-7)
    assert [p.stride() for p in ours[:2]] == [(12, 1, 6, 3), (16, 1, 4, 1)]
