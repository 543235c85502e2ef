"""One command for a machine with a GPU: build, the contract on it, the noise of CPU and GPU, the benchmark rows.

    python benchmarks/gpu_check.py [--device cuda|cpu] [--out FOLDER] [--only STAGE ...]

Each stage is a process of its own with a time limit, 9 minutes in all. What it finds stands in `gpu_check.json` as soon
as it is found, what it prints in `<stage>.log`; the folder is $OUT, or benchmarks/results. `--device cpu` rehearses it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"build": 150, "environment": 40, "noise": 50, "contract": 180, "benchmark": 110}


def update(out: Path, stage: str, found: dict[str, Any]) -> None:
    """Adds what a stage has found to the report."""
    file = out / "gpu_check.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    report.setdefault(stage, {}).update(found)
    file.write_text(json.dumps(report, indent=1) + "\n")


def build(device: str, out: Path) -> None:
    words = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    chosen = os.environ | ({"PYFASTGAN_BUILD": "cuda"} if device == "cuda" else {})
    subprocess.run([sys.executable, *words], check=True, env=chosen)


def environment(device: str, out: Path) -> None:
    """The machine, and the backend that serves each kernel."""
    from pyfastgan.ops import _backends
    from pyfastgan.ops._registry import ops

    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__}
    if device == "cuda":
        found["gpu"] = str(torch.cuda.get_device_properties(0))
        found["architectures"] = _backends.native("_cuda").architectures
        found["triton"] = importlib.metadata.version("triton")
    kernels = [k for op in ops().values() for k in op.kernels]
    found["serving"] = {k.name: k.serving(torch.device(device)) for k in kernels}
    update(out, "environment", found)
    assert "reference" not in found["serving"].values(), f"kernels are missing: {found['serving']}"


def contract(device: str, out: Path) -> None:
    words = ["-m", "pytest", "-q", "tests/ops/test_contract.py"]
    words += ["-k", "check_values"] if device == "cpu" else []
    words += ["-n", "8"] if importlib.util.find_spec("xdist") else []
    os.environ["PYFASTGAN_TEST_DEVICE"] = device
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT)


def noise(device: str, out: Path) -> None:
    """The numbers of the CPU, whole and in parts; a seed that is drawn and used without waiting for the GPU."""
    from pyfastgan import ops

    def both(function: Any, shape: tuple[int, ...], seed: Any, **options: Any) -> tuple[Any, Any]:
        there = seed.to(device) if isinstance(seed, torch.Tensor) else seed
        here = function(shape, seed, **options)
        return here, function(shape, there, device=device, **options).cpu()

    for shape in ((7, 3, 31, 17), (1001, 3), (1, 4), (3, 1 << 20)):
        for seed in (0, 2**63 + 5, torch.arange(shape[0]) - 1):
            for place in ({}, {"stream": 2**32 - 1, "sample_offset": 2**32 - shape[0]}):
                what = f"{shape}, seed {seed}, {place}"
                here, there = both(ops.random_words, shape, seed, **place)
                assert torch.equal(here, there), f"words differ: {what}"
                for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                    here, there = both(ops.random_uniform, shape, seed, dtype=dtype, **place)
                    assert torch.equal(here, there), f"{dtype} uniforms differ: {what}"
                    here, there = both(ops.random_normal, shape, seed, dtype=dtype, **place)
                    apart = (there - here).double().abs() / here.double().abs().clamp(min=1)
                    close = apart.max() <= 4 * torch.finfo(dtype).eps
                    assert close, f"{dtype} normals are {apart.max():.3g} apart: {what}"
    whole = ops.random_normal((64, 3, 8, 8), 1, device=device)
    for k in range(0, 64, 16):
        part = ops.random_normal((16, 3, 8, 8), 1, sample_offset=k, device=device)
        assert torch.equal(whole[k : k + 16], part), "a part of a batch differs from the whole"
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        ops.random_normal((64, 64), device=device)


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


def measure(row: Any, device: str, with_compile: bool) -> dict[str, Any]:
    """The contestants in turns, and the copy of the bytes that must move; medians."""
    calls = row.make()
    if with_compile:
        torch.compiler.reset()
        calls.setdefault("compile", torch.compile(calls["eager"]))
    else:
        calls.pop("compile", None)
    source = torch.zeros(int(row.bytes) // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls["limit"] = lambda: target.copy_(source)
    first = {name: turn(call, 1, device) for name, call in calls.items()}
    once = {name: min(turn(call, 1, device) for _ in range(3)) for name, call in calls.items()}
    rounds = [
        {name: turn(call, max(1, int(2e-3 / once[name])), device) for name, call in calls.items()}
        for _ in range(20 if device == "cuda" else 3)
    ]
    seconds = {name: statistics.median(r[name] for r in rounds) for name in calls}
    over = {name: value / seconds["ours"] for name, value in seconds.items()}
    return {
        "name": row.name,
        "shape": row.shape,
        "seconds": seconds,
        "over_ours": over,
        "first": first,
    }


def benchmark(device: str, out: Path) -> None:
    """Every row of the registry, as far as the time goes; torch.compile takes part in the first ones."""
    from pyfastgan.ops._registry import ops

    torch.set_default_device(device)  # rows allocate where torch does
    begin, rows = time.monotonic(), []
    for name, row in [(op.name, row) for op in ops().values() for row in op.rows()]:
        used = (time.monotonic() - begin) / SECONDS["benchmark"]
        if used > 0.85:
            break
        rows.append({"op": name, **measure(row, device, device == "cuda" and used < 0.4)})
        update(out, "benchmark", {"rows": rows})


STAGES = {f.__name__: f for f in (build, environment, noise, contract, benchmark)}


def main() -> int:
    folder = os.environ.get("OUT") or ROOT / "benchmarks" / "results"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path(folder))
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--inside", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device, out = options.device, options.out
    if options.inside:
        return STAGES[options.inside](device, out) or 0
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_check.json").unlink(missing_ok=True)
    outcomes = {}
    for stage in options.only:
        words = [__file__, "--inside", stage, "--device", device, "--out", str(out)]
        start, log = time.monotonic(), out / f"{stage}.log"
        with log.open("w") as file:
            # A group of its own, so that nothing that it starts outlives it.
            process = subprocess.Popen(
                [sys.executable, *words], stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = process.wait(SECONDS[stage])
                outcomes[stage] = f"exit status {status}" if status else "passed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                outcomes[stage] = f"not done in {SECONDS[stage]} s"
        seconds = round(time.monotonic() - start, 1)
        update(out, stage, {"outcome": outcomes[stage], "seconds": seconds})
        print(f"{stage}: {outcomes[stage]}, {seconds} s", flush=True)
        if outcomes[stage] != "passed":
            print("\n".join(log.read_text().splitlines()[-15:]), flush=True)
            if stage == "build":
                break
    return int(set(outcomes.values()) != {"passed"})


if __name__ == "__main__":
    sys.exit(main())
