"""The weights that samples are drawn from: an exponential moving average of those being trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Float32 copies of networks of any type, in eval mode, that follow them.

    After step t the copy moves by 1 - d towards the network, d = min(decay, t / (9 + t)): early on
    it is about an average over the last tenth of the run, so that a short run is not held back by
    its first, random weights. Running statistics (float buffers) are averaged alike, other buffers
    copied. With decay 0 the copies are the current weights.

    Args:
        networks: The networks to follow, on the device where they train.
        decay: In [0, 1).
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.networks = {name: _frozen_copy(network) for name, network in networks.items()}
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        for name, network in networks.items():
            live = network.state_dict(keep_vars=True)
            for key, copied in self.networks[name].state_dict(keep_vars=True).items():
                # By identity, so that tied tensors move once.
                pairs[id(copied)] = (copied.detach(), live[key])
        self._pairs = list(pairs.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow one optimisation step, the `step`-th counted from 1."""
        if self.decay > 0:
            self._move(min(self.decay, step / (9 + step)))

    @torch.no_grad()
    def current(self) -> dict[str, nn.Module]:
        """The networks to sample from."""
        if self.decay == 0:
            self._move(0.0)
        return self.networks

    def _move(self, decay: float) -> None:
        moving = [pair for pair in self._pairs if pair[0].is_floating_point()]
        averages = [average for average, _ in moving]
        live = [value.detach().to(average.dtype) for average, value in moving]
        torch._foreach_lerp_(averages, live, 1 - decay)
        for average, value in self._pairs:
            if not average.is_floating_point():
                average.copy_(value)


def _frozen_copy(network: nn.Module) -> nn.Module:
    """A float32 copy in eval mode, as a run is loaded later, whose parameters need no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False).float()
