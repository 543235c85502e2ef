"""Flows undo what they do: the largest |x - f^-1(f(x))| over points of moons, for 1 to 32 layers over the plane, as
they are initialised and after some training, with weights and points in each dtype beside float64's own.

    pytest -s proofs/test_flow_round_trips.py

It writes benchmarks/results/flow_round_trips.md, the table of docs/flows.md.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import pyfastgan as pf
from pyfastgan.flow.layers import GlowSteps
from pyfastgan.flow.networks import ResidualNet

TABLE = Path(__file__).parents[1] / "benchmarks" / "results" / "flow_round_trips.md"
DEPTHS = (1, 2, 4, 8, 16, 32)
# What no error may reach. Half types hold 3 and 2 digits, and errors of theirs grow with the slopes of what is learned.
DTYPES = {torch.float64: 1e-11, torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 4.0}
TRAINING_STEPS, BATCH = 300, 256


def glow(depth: int) -> pf.flow.Flow:
    """Glow's steps over the plane: ActNorm, a 2 x 2 matrix, and a coupling."""
    steps = [pf.nn.GlowStep(2, ResidualNet(1, 2)) for _ in range(depth)]
    return pf.flow.Flow(GlowSteps(steps), (2,))


MODELS: dict[str, Callable[[int], pf.flow.Flow]] = {
    "RealNVP": lambda depth: pf.flow.RealNVP(2, layers=depth),
    "NSF": lambda depth: pf.flow.NSF(2, layers=depth),
    "Glow": glow,
}


@torch.no_grad()
def error(model: pf.flow.Flow, x: Tensor, dtype: torch.dtype) -> float:
    model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    z, _ = model.transform(x)
    back: Tensor = model.transform.inverse(z)[0]  # type: ignore[operator]
    return (back - x).double().abs().max().item()


def train(model: pf.flow.Flow, points: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for batch in points[: TRAINING_STEPS * BATCH].split(BATCH):
        optimizer.zero_grad()
        (-model(batch).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()


def measured() -> Iterator[tuple[str, int, str, list[float]]]:
    points: Tensor = pf.data.load("moons").tensors[0]
    x = pf.data.load("moons", count=4096, seed=1).tensors[0].double()
    for name, make in MODELS.items():
        for depth in DEPTHS:
            torch.manual_seed(0)
            model = make(depth)
            model.init(points[:512])
            yield name, depth, "initial", [error(model, x, dtype) for dtype in DTYPES]
            train(model, points)
            yield name, depth, "trained", [error(model, x, dtype) for dtype in DTYPES]


def test_round_trips() -> None:
    head = " | ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    lines = [
        f"| model | layers | state | {head} |",
        f"|---|--:|---|{'--:|' * len(DTYPES)}",
    ]
    too_far = []
    for name, depth, state, errors in measured():
        row = " | ".join(f"{found:.1e}" for found in errors)
        lines.append(f"| {name} | {depth} | {state} | {row} |")
        print(lines[-1], flush=True)
        too_far += [
            f"{name} {depth} {state} {dtype}: {found:.1e}"
            for (dtype, least), found in zip(DTYPES.items(), errors, strict=True)
            if not found < least
        ]
    assert not too_far
    TABLE.write_text("\n".join(lines) + "\n")
