"""Whole training steps of flows: a neural spline flow beside nflows' own, and Glow with its activations stored or
computed again.

The spline flows have 5 couplings with the networks that nflows' tests build (residual, 5 blocks of 30 units), K = 8,
and a batch of 512; their eager form is nflows' own model. Eager Glow is the same model as the field writes it:
actnorm, convolution and coupling apart, its halves cut out and put together again. A step is zero_grad, forward,
backward, clipping, Adam; ours has the Adam that the trainer takes, the others Adam as it comes.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pyfastgan as pf
from pyfastgan.ops._registry import Row, ops
from pyfastgan.training.adam import Adam

LAYERS, WIDTH, BLOCKS, BINS = 5, 30, 5, 8


def stepper(model, nll, adam=torch.optim.Adam):
    optimizer = adam(model.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        nll().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    return step


def our_nsf(x):
    model = pf.flow.NSF(
        x.size(1), layers=LAYERS, width=WIDTH, blocks=BLOCKS, bins=BINS, mixing="none"
    )
    return stepper(model, lambda: -model(x).mean(), Adam)


def nflows_nsf(x):
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
    from nflows.utils import create_alternating_binary_mask

    features = x.size(1)
    layers = [
        PiecewiseRationalQuadraticCouplingTransform(
            create_alternating_binary_mask(features, even=k % 2 == 1),
            lambda i, o: ResidualNet(i, o, hidden_features=WIDTH, num_blocks=BLOCKS),
            num_bins=BINS,
            tails="linear",
            tail_bound=3.0,
        )
        for k in range(LAYERS)
    ]
    model = Flow(CompositeTransform(layers), StandardNormal([features]))
    return stepper(model, lambda: -model.log_prob(x).mean())


class EagerGlowStep(nn.Module):
    """As rosinality/glow-pytorch and others write it."""

    def __init__(self, channels, width):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.net = nn.Sequential(
            nn.Conv2d(channels // 2, width, 3, 1, 1), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1), nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 3, 1, 1),
        )  # fmt: skip
        for parameter in self.net[4].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x):
        area = x.shape[2] * x.shape[3]
        logdet = area * self.scale.abs().log().sum()
        x = self.scale * (x + self.loc)
        x = F.conv2d(x, self.weight[:, :, None, None])
        logdet = logdet + area * torch.linalg.slogdet(self.weight.double())[1].float()
        a, b = x.chunk(2, 1)
        log_s, t = self.net(a).chunk(2, 1)
        s = torch.sigmoid(log_s + 2)
        b = (b + t) * s
        return torch.cat((a, b), 1), logdet + s.log().flatten(1).sum(1)


class EagerGlow(nn.Module):
    def __init__(self, channels, scales, steps, width):
        super().__init__()
        self.rows, self.priors = nn.ModuleList(), nn.ModuleList()
        for k in range(scales):
            channels *= 4
            self.rows.append(nn.ModuleList(EagerGlowStep(channels, width) for _ in range(steps)))
            if k < scales - 1:
                channels //= 2
                prior = nn.Conv2d(channels, 2 * channels, 3, 1, 1)
                for parameter in prior.parameters():
                    nn.init.zeros_(parameter)
                self.priors.append(prior)

    def forward(self, images):
        whole = (images + 1) * 127.5
        x = (whole + torch.rand_like(whole)) / 256 - 0.5
        total = 0
        for k, row in enumerate(self.rows):
            n, c, h, w = x.shape
            x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
            x = x.reshape(n, c * 4, h // 2, w // 2)
            for step in row:
                x, logdet = step(x)
                total = total + logdet
            if k < len(self.priors):
                x, z = x.chunk(2, 1)
                mean, log_s = self.priors[k](x).chunk(2, 1)
                total = total + self.normal((z - mean) * torch.exp(-log_s))
                total = total - log_s.flatten(1).sum(1)
        return total + self.normal(x)

    def normal(self, z):
        return torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1)


def our_glow(images, recompute, steps=8):
    torch.manual_seed(0)
    model = pf.flow.Glow(images.shape[1:], steps=steps, scales=3, width=64, recompute=recompute)
    model.init(images)
    return stepper(model, lambda: -model(images).mean() / images[0].numel(), Adam)


def eager_glow(images, prepare=lambda network: network):
    torch.manual_seed(0)
    model = EagerGlow(images.size(1), 3, 8, 64)
    loss = prepare(model)
    return stepper(model, lambda: -loss(images).mean() / images[0].numel())


@pytest.mark.parametrize("features", [64, 2])
def test_nsf_step(measure, benchmark, features):
    x = torch.randn(512, features)
    with FlopCounterMode(display=False) as counter:
        nflows_nsf(x)()
    row = Row(
        "NSF training step",
        f"{features}-D, 5 couplings, 5 blocks of 30, K=8, batch 512",
        lambda: {"ours": our_nsf(x), "eager": nflows_nsf(x)},
        bytes=0,
        flops=counter.get_total_flops(),
    )
    result = measure(row, [ops()["rational_quadratic_spline"]], compile_eager=False)
    benchmark.extra_info |= result["ratios"]
    benchmark(our_nsf(x))


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
def test_glow_step(measure, benchmark, recompute):
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    with FlopCounterMode(display=False) as counter:
        eager_glow(images)()
    row = Row(
        "Glow training step" + (", recomputed" if recompute else ""),
        "L=3, K=8, hidden 64, 32 px, batch 16",
        lambda: {
            "ours": our_glow(images, recompute),
            "eager": eager_glow(images),
            **(
                {"ours, stored": our_glow(images, False)}
                if recompute
                else {"compile": eager_glow(images, torch.compile)}
            ),
        },
        bytes=0,
        flops=counter.get_total_flops(),
    )
    result = measure(row, [ops()["affine_coupling"]], compile_eager=not recompute)
    benchmark.extra_info |= result["ratios"]
    benchmark.pedantic(our_glow(images, recompute), rounds=3)
