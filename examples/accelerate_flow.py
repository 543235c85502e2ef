"""A spline flow of nflows made faster by one line: the same losses, the same parameters, less time.

Needs nflows. python examples/accelerate_flow.py [STEPS] [PICTURE]
"""

import copy
import sys
import time
from pathlib import Path

import torch
from nflows import distributions, flows, nn, transforms

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "accelerate_flow.png")


def coupling(mask: list[int]) -> torch.nn.Module:
    return transforms.PiecewiseRationalQuadraticCouplingTransform(
        torch.tensor(mask),
        lambda inputs, outputs: nn.nets.ResidualNet(inputs, outputs, hidden_features=32),
        num_bins=8,
        tails="linear",
        tail_bound=3.0,
    )


torch.manual_seed(0)
layers = [coupling([1, -1]), coupling([-1, 1]), coupling([1, -1]), coupling([-1, 1])]
plain = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([2]))
fast = copy.deepcopy(plain)
print(pf.accelerate(fast))

points = pf.data.load("moons", count=50_000, seed=0).tensors[0]
for name, flow in (("plain", plain), ("accelerated", fast)):
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    start = time.perf_counter()
    for step in range(steps):
        batch = points[step * 512 % 49_000 :][:512]
        loss = -flow.log_prob(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{name:12} {time.perf_counter() - start:6.2f} s, loss {loss:.4f}")

with torch.no_grad():
    pf.training.save_samples(fast.sample(2000), picture)
print(picture)
