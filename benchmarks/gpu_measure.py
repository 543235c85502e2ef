"""How gpu_check.py measures: clocks, rates of the machine, rows on tensors that are in no cache, a critic's step."""

from __future__ import annotations

import importlib
import math
import statistics
import time
from typing import Any

import torch

# Elements of the large tensors, 64 MB of float32 and more, and in a rehearsal.
LARGE, REHEARSED = 1 << 24, 1 << 16


def turn(call: Any, count: int, device: str) -> float:
    """Seconds of a call, from the GPU's own clock where there is one."""
    if device == "cpu":
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / count


def rotated(calls: list[Any]) -> Any:
    """The same call on other tensors every time, so that none of them is still in the L2 cache."""
    place = [0]

    def call() -> Any:
        place[0] = (place[0] + 1) % len(calls)
        return calls[place[0]]()

    return call


def cache_size(device: str) -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0


def machine_rates(device: str) -> dict[str, float]:
    """Bytes a second of a copy that no cache holds, and operations a second of a matrix product."""
    size, side = (1 << 30, 8192) if device == "cuda" else (1 << 24, 256)
    source, target = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    a, b = (torch.randn(side, side).bfloat16() for _ in range(2))
    rates = {}
    for name, call, work in (
        ("copy_bytes", lambda: target.copy_(source), 2 * size),
        ("bfloat16_operations", lambda: a @ b, 2 * side**3),
    ):
        turn(call, 1, device)
        rates[name] = work / statistics.median(turn(call, 3, device) for _ in range(10))
    return rates


def measure(row: Any, device: str, with_compile: bool, rates: dict[str, float]) -> dict[str, Any]:
    """The contestants in turns, on tensors that are in no cache; medians."""
    copies = max(1, min(8, math.ceil(3 * cache_size(device) / row.bytes)))
    made = [row.make() for _ in range(copies)]
    if with_compile:
        torch.compiler.reset()
        for calls in made:
            calls.setdefault("compile", torch.compile(calls["eager"]))
    names = [n for n in made[0] if with_compile or n != "compile"]
    calls = {name: rotated([m[name] for m in made]) for name in names}
    first, fails = {}, {}
    for name in names:
        try:
            first[name] = turn(calls[name], 1, device)
        except Exception as error:  # torch.compile has no second order, and cdist no half types
            if name == "ours":
                raise
            fails[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del calls[name]
    for call in calls.values():
        turn(call, copies, device)
    once = {name: min(turn(call, 1, device) for _ in range(3)) for name, call in calls.items()}
    rounds = [
        {name: turn(call, max(1, int(2e-3 / once[name])), device) for name, call in calls.items()}
        for _ in range(20 if device == "cuda" else 2)
    ]
    seconds = {name: statistics.median(r[name] for r in rounds) for name in calls}
    limit = max(row.bytes / rates["copy_bytes"], row.flops / rates["bfloat16_operations"])
    return {
        "name": row.name,
        "shape": row.shape,
        "seconds": seconds,
        "limit": limit,
        "over_ours": {name: value / seconds["ours"] for name, value in seconds.items()},
        "of_limit": limit / seconds["ours"],
        "first": first,
        "fails": fails,
    }


def large_rows(device: str) -> list[tuple[str, str, Any]]:
    """An op's name, the element type and a row of large tensors."""
    elements = LARGE if device == "cuda" else REHEARSED

    def module(name: str) -> Any:
        return importlib.import_module(f"pyfastgan.ops.{name}")

    bias, norm, couple = module("bias_act"), module("norm_act"), module("affine_coupling")
    image = (elements // 2**16, 64, 32, 32)
    rows = [
        *(
            ("bias_act", bias._row(act, image, "contiguous", 1))
            for act in ("leaky_relu", "silu", "gelu")
        ),
        *(
            ("norm_act", norm._row(kind, "leaky_relu", image, "contiguous", order))
            for kind in norm.NORMS
            for order in (1, 2)
        ),
        ("norm_act", norm._row("batch", "leaky_relu", image, "channels last", 2)),
        ("affine_coupling", couple._row(image, "tanh", False, 1)),
        (
            "nearest_code",
            module("nearest_code")._row(elements >> 7, 8192 if device == "cuda" else 64, 256),
        ),
    ]
    return [
        (dtype, name, row)
        for name, row in rows
        for dtype in (("float32", "bfloat16") if name != "affine_coupling" else ("float32",))
    ]


def critic_steps(device: str) -> dict[str, float]:
    """Seconds of a critic's step with R1: by autograd, ours, and ours from a CUDA graph."""
    from bench_critic_step import critic

    from pyfastgan.gan import critic_step
    from pyfastgan.training.graphs import beside, capture

    rows, pixels = (64, 64) if device == "cuda" else (4, 16)
    kind = torch.bfloat16
    net = critic(pixels).to(device, kind)
    real, fake = (torch.randn(rows, 3, pixels, pixels, device=device, dtype=kind) for _ in range(2))

    def eager() -> None:
        net.zero_grad()
        x = real.detach().requires_grad_()
        judged = net(x).float()
        (slope,) = torch.autograd.grad(judged.sum(), x, create_graph=True)
        penalty = slope.float().square().flatten(1).sum(1).mean()
        loss = torch.nn.functional.softplus(net(fake).float()).mean()
        (loss + torch.nn.functional.softplus(-judged).mean() + 5 * penalty).backward()

    def ours() -> None:
        net.zero_grad()
        critic_step(net, real, fake, loss="non-saturating", penalty="r1", weight=10.0, seed=1)

    calls = {"eager": eager, "ours": ours}
    if device == "cuda":
        for _ in range(3):
            beside(ours)
        calls["ours, CUDA graph"] = capture(ours)
    for call in calls.values():
        turn(call, 2, device)
    rounds = [{n: turn(c, 3, device) for n, c in calls.items()} for _ in range(5)]
    return {n: statistics.median(r[n] for r in rounds) for n in calls}
