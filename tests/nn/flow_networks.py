"""What tests of the layers of flows share: a network, numbers by a seed, initialised layers."""

import torch
from torch import nn


class Net(nn.Module):
    """Linear in both inputs, then a tanh; over vectors or images."""

    def __init__(self, inputs, outputs, condition=0, image=False, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.image = image
        self.a = nn.Parameter(
            0.3 * torch.randn(8, inputs + condition, generator=g, dtype=torch.float64)
        )
        self.b = nn.Parameter(0.3 * torch.randn(outputs, 8, generator=g, dtype=torch.float64))

    def forward(self, x, condition=None):
        if condition is not None:
            x = torch.cat((x, condition), 1)
        rule = "oi,nihw->nohw" if self.image else "oi,ni->no"
        return torch.einsum(rule, self.b, torch.einsum(rule, self.a, x).tanh())


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def initialized(layer):
    layer = layer.double()
    norm = getattr(layer, "actnorm", layer)
    norm.init(2 * seeded(50, norm.bias.numel()) + 1)
    return layer
