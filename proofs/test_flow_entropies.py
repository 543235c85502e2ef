"""Trained spline flows come within 0.03 nats (the funnel within 0.06) of the entropy of distributions over the plane,
and never significantly below.

A model is judged on new points by the mean of log p(x) - log model(x), the divergence between the two, which is known
far better than the NLL: the entropy's own noise is not in it. NLL = entropy + divergence.

    pytest -s proofs/test_flow_entropies.py [-k moons]
"""

import math
import time
from pathlib import Path

import pytest
import torch

import pyfastgan as pf
from pyfastgan.flow.system import evaluate

# The entropy in nats, how near to it, and what the configuration has beside the preset's.
CASES = {
    "moons": (1.0076, 0.03, {}),
    "8gaussians": (2.8319, 0.03, {}),
    "checkerboard": (3.4657, 0.03, {"bins": 32, "tail_bound": 5.0, "learning_rate": 2e-3}),
    "funnel": (3.9365, 0.06, {}),
}
POINTS = 1_000_000


@pytest.mark.parametrize("name", CASES)
def test_entropy(name: str, tmp_path: Path) -> None:
    entropy, within, changes = CASES[name]
    toy = pf.data.TOYS[name]
    # The 8 Gaussians of these parameters have 2.83158 nats.
    assert abs(toy.entropy - entropy) < 5e-4
    start = time.perf_counter()
    run = pf.flow.train(
        pf.flow.preset("nsf", name),
        data=pf.data.load(name, count=POINTS),
        out=tmp_path / "run",
        accelerator="cpu",
        sample_every=0,
        **changes,
    )
    seconds = time.perf_counter() - start
    config = pf.training.resolve_config(pf.flow.FlowConfig, run.config, data=name)
    held_out = pf.data.load(name, count=POINTS, seed=1)
    found = evaluate(pf.flow.load(run), held_out, config)
    excess, error = found["excess"], found["excess_error"]
    print(
        f"\n{name}: NLL {toy.entropy + excess:.4f} nats, {excess:+.4f} +- {error:.4f} over the entropy"
        f" {toy.entropy:.4f}; {config.steps} steps in {seconds:.0f} s"
    )
    assert math.isfinite(excess)
    assert -4 * error < excess < within


def test_the_density_s_own_estimate() -> None:
    """The points are those whose entropies these are."""
    for name, (entropy, _, _) in CASES.items():
        toy = pf.data.TOYS[name]
        nll = -toy.log_density(toy.sample(200_000, seed=3))
        assert torch.isfinite(nll).all()
        assert abs(nll.mean().item() - entropy) < 4 * nll.std().item() / 200_000**0.5 + 5e-4
