"""What data-parallel training usually gets wrong, in a small script that trains on two ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from toy_system import ToySystem, config, points

from pyfastgan.training import Run, fit


class GameSystem(ToySystem):
    """Two players, two backwards in a step, one a gradient penalty's; one frozen in a turn."""

    def __init__(self) -> None:
        critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.networks = {"net": nn.Linear(2, 2), "critic": critic}
        self.optimizers = {
            name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in self.networks.items()
        }
        self.averaged = ("net",)

    def training_step(self, fabric: Any, batch: tuple[Tensor, ...], step: int) -> dict[str, Tensor]:
        """Nothing random, so that the batch alone decides."""
        (x,) = batch
        net, critic = self.networks["net"], self.networks["critic"]
        real = x.clone().requires_grad_()
        score = critic(real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        loss = critic(net(x.flip(1)).detach()).mean() - score.mean()
        self.optimizers["critic"].zero_grad()
        fabric.backward(loss, retain_graph=True)
        fabric.backward(slope.square().sum(1).mean())
        self.optimizers["critic"].step()
        critic.requires_grad_(False)
        turn = -critic(net(x.flip(1))).mean()
        self.optimizers["net"].zero_grad()
        fabric.backward(turn)
        self.optimizers["net"].step()
        critic.requires_grad_(True)
        return {"critic": loss.detach(), "net": turn.detach()}


def train(out: Path, devices: int, steps: int, resume: bool = False) -> Run:
    """Train the game; every process of a run comes here."""
    fields = config(devices=devices, steps=steps)
    return fit(GameSystem, points(), fields, out, name="game", resume=resume)


if __name__ == "__main__":
    train(Path(sys.argv[1]), devices=2, steps=int(sys.argv[2]))
