"""One command for a machine with a GPU: build, the contract on it, noise, launches, sanitizer, speed, training steps.

    python benchmarks/gpu_check.py [--device cuda|cpu] [--out FOLDER] [--only STAGE ...]

Each stage is a process of its own with a time limit, 9 minutes in all. What it finds stands in `gpu_check.json` as soon
as it is found, what it prints in `<stage>.log`; the folder is $OUT, or benchmarks/results. At the end stands a short
table. `--device cpu` rehearses it, on small tensors. `benchmarks/report.py` puts the JSON beside the CPU's rows.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_measure import critic_steps, large_rows, machine_rates, measure

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {
    "build": 120,
    "environment": 15,
    "noise": 30,
    "contract": 120,
    "parts": 20,
    "launches": 25,
    "inductor": 40,
    "sanitizer": 40,
    "benchmark": 90,
    "training": 40,
}


def allowed(stage: str, device: str) -> float:
    """Seconds of a stage; a rehearsal may be slow."""
    return SECONDS[stage] * (1 if device == "cuda" else 8)


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
    for k in kernels:
        written = {"cpu"} if device == "cpu" else {"cuda", "triton"}
        backend = found["serving"][k.name]
        assert backend in written or not written & set(k.backends()), f"{backend} serves {k.name}"


def contract(device: str, out: Path) -> None:
    words = ["-m", "pytest", "-q", "tests/ops/test_contract.py"]
    words += ["-k", "check_values-f32 and cpu and not large"] if device == "cpu" else []
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


def served(device: str) -> list[Any]:
    """The ops that have a kernel of their own for the device."""
    from pyfastgan.ops._registry import ops

    own = {"cpu"} if device == "cpu" else {"cuda", "triton"}
    return [op for op in ops().values() if own & set(op.kernels[0].backends())]


def launches(device: str, out: Path) -> None:
    """Every op without waiting for the GPU, on another stream, and from a CUDA graph, with the same bits."""
    from pyfastgan import testing

    done = []
    for op in served(device):
        sample = op.samples[0]
        expected = testing.run(op.function, op, sample, torch.float32, device)
        args, kwargs = sample.make(torch.float32, device)
        if device == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                again = testing.run(op.function, op, sample, torch.float32, device)
            stream.synchronize()
            testing.assert_same(expected, again, f"{op.name} on another stream")
            plain = testing.tensors_of(op.function(*args, **kwargs))
            torch.cuda.set_sync_debug_mode("error")
            op.function(*args, **kwargs)
            torch.cuda.set_sync_debug_mode("default")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                held = testing.tensors_of(op.function(*args, **kwargs))
            graph.replay()
            torch.cuda.synchronize()
            testing.assert_same(list(plain), list(held), f"{op.name} from a CUDA graph")
        done.append(op.name)
        update(out, "launches", {"ops": done})


def parts(device: str, out: Path) -> None:
    """What has kernels beside the registered ops, against the CPU."""
    from gpu_parts import check

    update(out, "parts", {"errors": check(device)})


def inductor(device: str, out: Path) -> None:
    """`torch.compile(fullgraph=True)` with inductor, as many ops as the time allows."""
    from pyfastgan import testing, use_backend

    begin, done, wrong = time.monotonic(), [], {}
    for op in served(device):
        if time.monotonic() - begin > allowed("inductor", device) * 0.6:
            break
        try:
            # Of small tensors on a CPU `auto` would be torch's operations, which inductor joins.
            with use_backend("auto" if device == "cuda" else "cpu"):
                testing.check_compiles(op, op.samples[0], device, backend="inductor")
        except Exception as error:  # the other ops are to be seen, too
            wrong[op.name] = f"{type(error).__name__}: {error}"[:2000]
        done.append(op.name)
        update(out, "inductor", {"ops": done, "wrong": wrong})
    assert not wrong, wrong


def sanitizer(device: str, out: Path) -> None:
    """compute-sanitizer's memcheck on the small sample calls, where there is one."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if tool is None or device == "cpu":
        update(out, "sanitizer", {"found": "no compute-sanitizer, or no GPU"})
        return
    words = ["-m", "pytest", "-x", "-q", "tests/ops/test_contract.py"]
    words += ["-k", "check_values-f32 and not large and not several and not many"]
    environment = os.environ | {
        "PYFASTGAN_TEST_DEVICE": device,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, *words]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    update(out, "sanitizer", {"found": "no error"})


def benchmark(device: str, out: Path) -> None:
    """Large tensors, with torch.compile, then every row of the registry, as far as the time goes."""
    from pyfastgan.ops._registry import ops

    torch.set_default_device(device)  # rows allocate where torch does
    begin = time.monotonic()
    rates = machine_rates(device)
    update(out, "benchmark", {"rates": rates, "rows": []})
    planned = [("float32", op.name, row, False) for op in ops().values() for row in op.rows()]
    large = [(*found, True) for found in large_rows(device)]
    planned = large[:6] + planned + large[6:]
    rows: list[dict[str, Any]] = []
    for dtype, name, row, compiled in planned:
        used = (time.monotonic() - begin) / allowed("benchmark", device)
        if used > (0.85 if device == "cuda" else 0.6):  # one row may take a minute on a CPU
            break
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            found = measure(row, device, compiled and used < 0.5, rates)
        except Exception as error:  # one row less, and the reason, in place of none after it
            found = {
                "name": row.name,
                "shape": row.shape,
                "error": f"{type(error).__name__}: {error}",
            }
        rows.append({"op": name, "dtype": dtype, "large": compiled, **found})
        update(out, "benchmark", {"rows": rows})
    left = len(planned) - len(rows)
    update(out, "benchmark", {"not_reached": left})


def training(device: str, out: Path) -> None:
    """A critic's step, and the steps a second of whole trainings with and without CUDA graphs."""
    update(out, "training", {"r1_critic_step": critic_steps(device)})
    import pyfastgan as pf

    families = {
        "dcgan": pf.gan,
        "stylegan2": pf.gan,
        "vae": pf.vae,
        "pixelcnn": pf.autoregressive,
        "nsf": pf.flow,
        "edm": pf.diffusion,
    }
    steps = 120 if device == "cuda" else 4
    rates: dict[str, dict[str, float]] = {}
    for name, family in families.items():
        for graphed in (False, True) if device == "cuda" else (False,):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
                run = family.train(
                    name, out=Path(folder) / "run", data="moons" if name == "nsf" else "digits", steps=steps,
                    batch_size=64, accelerator=device,
                    log_every=steps // 2, sample_every=0, checkpoint_every=0, cuda_graph=graphed,
                )  # fmt: skip
                rate = run.history[-1]["steps_per_second"]
            rates.setdefault(name, {})["CUDA graph" if graphed else "launches"] = float(rate)
            update(out, "training", {"steps_per_second": rates})


def summary(report: dict[str, Any]) -> str:
    """The outcomes, and the large rows."""
    lines = [f"{'stage':12} outcome"]
    lines += [f"{n:12} {found['outcome']}, {found['seconds']} s" for n, found in report.items()]
    rows = report.get("benchmark", {}).get("rows", [])
    if rows:
        lines += [
            "",
            f"{'row':52} {'dtype':9} {'ours ms':>8} {'x eager':>8} {'x compile':>9} {'of limit':>8}",
        ]
    for row in rows:
        if not row["large"] and any(r["large"] for r in rows):
            continue
        title = f"{row['name']}, {row['shape']}"
        if "error" in row:
            lines.append(f"{title[:52]:52} {row['error'][:60]}")
            continue
        over = row["over_ours"]
        shown = [f"{over[n]:.2f}" if n in over else "-" for n in ("eager", "compile")]
        milliseconds = 1e3 * row["seconds"]["ours"]
        lines.append(
            f"{title[:52]:52} {row['dtype']:9} {milliseconds:8.3f} {shown[0]:>8} {shown[1]:>9} "
            f"{row['of_limit']:8.2f}"
        )
    return "\n".join(lines)


STAGES = {
    f.__name__: f
    for f in (
        build,
        environment,
        noise,
        contract,
        parts,
        launches,
        inductor,
        sanitizer,
        benchmark,
        training,
    )
}


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
        limit = allowed(stage, device)
        with log.open("w") as file:
            # A group of its own, so that nothing that it starts outlives it.
            process = subprocess.Popen(
                [sys.executable, *words], stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = process.wait(limit)
                outcomes[stage] = f"exit status {status}" if status else "passed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                outcomes[stage] = f"not done in {limit} s"
        seconds = round(time.monotonic() - start, 1)
        update(out, stage, {"outcome": outcomes[stage], "seconds": seconds})
        print(f"{stage}: {outcomes[stage]}, {seconds} s", flush=True)
        if outcomes[stage] != "passed":
            print("\n".join(log.read_text().splitlines()[-15:]), flush=True)
            if stage == "build":
                break
    print(summary(json.loads((out / "gpu_check.json").read_text())), flush=True)
    return int(set(outcomes.values()) != {"passed"})


if __name__ == "__main__":
    sys.exit(main())
