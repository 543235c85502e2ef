"""Critics of every kind that `critic_step` takes apart, for its tests: images (N, 3, 8, 8)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pyfastgan.gan import Discriminator, ResidualCritic
from pyfastgan.nn import BiasAct, ConvBlock, FusedSequential, NormAct
from pyfastgan.ops import bias_act

SHAPE = (3, 8, 8)


def plain(act: nn.Module | None = None, norm: type[nn.Module] | None = None) -> nn.Module:
    act = nn.LeakyReLU(0.2) if act is None else act
    layers = [nn.Conv2d(3, 6, 4, 2, 1), act, nn.Conv2d(6, 8, 3, 1, 1)]
    layers += [] if norm is None else [norm(8)]  # type: ignore[call-arg]
    return nn.Sequential(
        *layers, act, nn.Conv2d(8, 4, 4, 2, 1), act, nn.Flatten(), nn.Linear(16, 1)
    )


class Residual(nn.Module):
    """Additions, a skip without bias, both resamplings, a mean over positions."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.stem = nn.Conv2d(3, 6, 3, 1, 1)
        self.a, self.b = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 8, 3, 1, 1)
        self.skip = nn.Conv2d(6, 8, 1, bias=False)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError("three channels")
        h = self.stem(x)
        y = self.b(self.act(self.a(self.act(h))))
        half = F.interpolate(h, scale_factor=0.5, mode="bilinear")
        h = F.avg_pool2d(y, 2) + self.skip(half) * 0.7
        h = F.interpolate(h, scale_factor=2) - 0.1
        return self.head(F.leaky_relu(h, 0.2).mean((2, 3)))


class Projection(nn.Module):
    """Labels as channels and by projection, and a weight that multiplies channels."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.maps = nn.Embedding(5, 2 * 64)
        self.body = nn.Sequential(nn.Conv2d(5, 6, 4, 2, 1), act, nn.Conv2d(6, 8, 3), act)
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(1, 8, 1, 1))
        self.head, self.labels = nn.Linear(8, 1), nn.Embedding(5, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        maps = self.maps(labels).view(-1, 2, 8, 8)
        h = (self.body(torch.cat([x, maps], 1)) * self.scale).sum(dim=[2, 3])
        return self.head(h)[:, 0] + (h * self.labels(labels)).sum(1)


class EqualConv(nn.Conv2d):
    """Equalised learning rate in `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / math.sqrt(self.weight[0].numel())
        return F.conv2d(x, self.weight * scale, self.bias, self.stride, self.padding)


class Functional(nn.Module):
    """Functions, a concatenation with the images, padding, changes in place, a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(11, 8, 3, padding=1, groups=1)
        self.c = nn.Conv2d(8, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x), inplace=True)
        h = self.b(torch.cat([h, x], dim=1))
        h += 0.5
        h = bias_act(h, self.c.weight[0, :, 0, 0], "leaky_relu")
        return self.c(F.pad(h, (1, 0, 1, 0)))


def spectral() -> nn.Module:
    norm = parametrizations.spectral_norm
    net = nn.Sequential(
        norm(nn.Conv2d(3, 6, 4, 2, 1)),
        nn.LeakyReLU(0.1, inplace=True),
        norm(nn.ConvTranspose2d(6, 4, 4, 2, 1)),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        norm(nn.Linear(64, 1)),
    )
    for _ in range(3):
        net(torch.randn(2, *SHAPE))
    return net.eval()  # each of autograd's passes would take a power iteration of its own


def old_hooks() -> nn.Module:
    return nn.Sequential(
        nn.utils.spectral_norm(nn.Conv2d(3, 6, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        nn.utils.weight_norm(nn.Conv2d(6, 4, 3)),
        nn.SiLU(),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(16, 1)),
    ).eval()


def edges() -> nn.Module:
    """Layers of few channels on one side, which `edge_conv` has kernels for: both kinds of convolution, with a
    bias that the activation adds, one that the layer adds, and none."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 2, 4, 2, 1),
        nn.Conv2d(2, 9, 3, 1, 1, bias=False),
        nn.ReLU(),
        nn.ConvTranspose2d(9, 1, 2, 2, 0),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(256, 1),
    )


# In evaluation mode batch norm is an affine map.
CRITICS = {
    "leaky relu": plain,
    "relu": lambda: plain(nn.ReLU()),
    "silu": lambda: plain(nn.SiLU()),
    "instance norm": lambda: plain(norm=lambda c: nn.InstanceNorm2d(c, affine=True)),  # type: ignore[arg-type]
    "group norm, tanh": lambda: plain(nn.Tanh(), norm=lambda c: nn.GroupNorm(2, c)),  # type: ignore[arg-type]
    "NormAct": lambda: plain(norm=lambda c: NormAct("layer", c, act="gelu")),  # type: ignore[arg-type]
    "layer norm": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 1)
    ),
    "batch norm, fixed": lambda: plain(norm=nn.BatchNorm2d).eval(),
    "residual": lambda: Residual(nn.LeakyReLU(0.2)),
    "residual, softplus": lambda: Residual(nn.Softplus()),
    "projection": lambda: Projection(nn.LeakyReLU(0.2)),
    "projection, sigmoid": lambda: Projection(nn.Sigmoid()),
    "spectral norm": spectral,
    "old hooks": old_hooks,
    "equalised": lambda: nn.Sequential(
        EqualConv(3, 6, 4, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1)
    ),
    "functional": Functional,
    "blocks, patches": lambda: FusedSequential(
        ConvBlock(3, 6, 4, 2, 1),
        BiasAct(6, "leaky_relu", gain=1.4, clamp=1.0),
        ConvBlock(6, 4, 3, 1, 1, act="silu"),
        nn.Conv2d(4, 1, 2),
    ),
    "Discriminator": lambda: Discriminator(8, channels=3, width=6).eval(),
    "ResidualCritic": lambda: ResidualCritic(8, channels=3, width=4),
    "edges": edges,
}
COMBINATIONS = [
    ("non-saturating", "r1"),
    ("relativistic", "r1r2"),
    ("wgan", "wgan-gp"),
    ("hinge", None),
    ("minimax", "r2"),
    ("least-squares", "dragan"),
    ("wgan", "wgan-gp-one-sided"),
]
VARIATIONAL = [
    ("kl", "r1"),
    ("reverse-kl", None),
    ("pearson", "wgan-gp"),
    ("squared-hellinger", "r1r2"),
    ("jensen-shannon", "dragan"),
    ("total-variation", "r2"),
]


def make(name: str, dtype: torch.dtype = torch.float64, gain: float = 1.0) -> nn.Module:
    """A critic whose every parameter matters, times `gain`."""
    torch.manual_seed(3)
    critic = CRITICS[name]()
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(0.05 * torch.randn_like(p)).mul_(gain)
    return critic.to(dtype)


def condition(name: str, count: int) -> Tensor | None:
    return torch.arange(count) * 2 % 5 if name.startswith("projection") else None
