"""Draws docs/benchmarks.md and its plots, and the tables in README and other pages, from the suites' results.

    python benchmarks/report.py [FILE] [--docs FOLDER] [--gpu FILE]
                                [--run [--quick] [--force] [--seconds N] [--resume] [--only WORDS]]

`--run` measures first: it is `pytest benchmarks --results FILE`, in at most 25 minutes, 5 with `--quick`, or the
seconds that are given. Rows that could not be begun by then are named on the page; the same command with `--resume`
measures these and keeps the others. The results of `pyfastgan bench --json FILE` can be drawn too; they hold neither
size sweeps nor whole training steps nor memory. `--gpu` is what `make gpu-check` has written on a machine with a GPU.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import plots  # beside this file
import tables

from pyfastgan.bench import duration, failures

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
GPU = ROOT / "benchmarks" / "results" / "gpu_check.json"
# Who has a column in the tables; all the others share one.
COLUMNS = {"ours", "eager", "compile"}
MEMORY = """Our large outputs lie in memory that is kept from call to call; the C library gives the others' back and
they pay a page fault for every 4 KiB of new memory, unless the environment says
`GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592`."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of benchmarks.md")
    parser.add_argument("--gpu", type=Path, default=GPU, help="results of make gpu-check")
    parser.add_argument("--run", action="store_true", help="measure first")
    parser.add_argument("--quick", action="store_true", help="measure each row for a shorter time")
    parser.add_argument("--force", action="store_true", help="measure on a noisy machine, marked")
    parser.add_argument("--seconds", type=float, metavar="N", help="begin no row after that time")
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE has")
    parser.add_argument("--only", metavar="WORDS", help="what pytest -k finds")
    options = parser.parse_args()
    status = run(options) if options.run else 0
    if not options.results.exists():
        sys.exit(status or f"there is no {options.results}: measure with --run")
    results = json.loads(options.results.read_text())
    images = options.docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    memory = [row for row in results["rows"] if "memory" in row]
    results["rows"] = [row for row in results["rows"] if "memory" not in row]
    rows = [row for row in results["rows"] if "sweep" not in row]
    sweeps = defaultdict(list)
    for row in results["rows"]:
        if "sweep" in row:
            sweeps[row["sweep"]].append(row)
    if rows:
        plots.draw_speedups(rows, images / "benchmarks-speedup.svg")
        plots.draw_limits(rows, images / "benchmarks-limit.svg")
        plots.draw_first_calls(rows, images / "benchmarks-first-call.svg")
    steps = [row for row in rows if " step" in row["name"]]
    if steps:
        plots.draw_times(steps, images / "benchmarks-steps.svg")
    if memory:
        plots.draw_memory(memory, images / "benchmarks-memory.svg")
    if sweeps:
        plots.draw_sweeps(sweeps, images / "benchmarks-size.svg")
    for page in (options.docs.parent / "README.md", *options.docs.glob("*.md")):
        if page.exists():
            page.write_text(tables.filled(page.read_text(), rows))
    page = options.docs / "benchmarks.md"
    page.write_text(text(results, rows, sweeps, memory, gpu_results(options.gpu)))
    print(page)
    sys.exit(status)


def run(options):
    """Runs the suites; the exit status of pytest, which is not 0 if a row could not be measured."""
    seconds = options.seconds or (300 if options.quick else 1500)
    words = [
        "-p",
        "no:benchmark",
        str(ROOT / "benchmarks"),
        "-q",
        "--results",
        str(options.results.resolve()),
    ]
    words += [f"--{name}" for name in ("quick", "force", "resume") if getattr(options, name)]
    words += ["--seconds", str(seconds), *(["-k", options.only] if options.only else [])]
    status = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT).returncode
    return 0 if status == 5 else status  # 5: there was nothing left to measure


def gpu_results(path):
    """The report of a check on a GPU; None if there is none, or only a rehearsal on a CPU."""
    report = json.loads(path.read_text()) if path.exists() else {}
    return report if "gpu" in report.get("environment", {}) else None


def text(results, rows, sweeps, memory=(), gpu=None):
    """The page."""
    machine, versions = results["hardware"], results["versions"]
    found = results["rows"]
    losing = [row for row in found if loses(row)]
    parts = [
        "# Benchmarks",
        "Made by `make bench` (`.venv/bin/python benchmarks/report.py --run`), which measures every "
        "row on the machine it runs on and writes this page; not edited by hand.",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, kernels for "
        f"{machine['isa'] or 'no instruction set: PyTorch reference only'}; "
        f"Python {versions['python']}, torch {versions['torch']}, pyfastgan {versions['pyfastgan']}"
        + (f" ({versions['revision']})." if versions["revision"] else "."),
    ]
    if results["noise"]["noisy"]:
        parts.append("**Measured on a noisy machine with --force: do not trust these numbers.**")
    parts += [
        "All contestants of a row take turns in one process, and medians are compared. *Eager* is "
        "PyTorch as the field writes it, *compile* is `torch.compile` of that, and the *limit* is "
        "what the machine needs at least: bytes that must move over the copy bandwidth measured "
        "between the turns, or operations over the rate of a matrix product. In brackets: "
        "their time over ours, bold where we lose, and ours over the limit. The first call holds "
        "what has to be set up: loading for ours, compiling for compile, from an empty cache. An "
        "op whose values are not its reference's gets no speed-up. " + MEMORY,
        "## Where we lose",
        table(losing) if losing else "No row, against anyone.",
        *memory_parts([row for row in memory if more_than_others(row)], "### Memory"),
    ]
    if results.get("not_measured"):
        suites = Counter(short(name).split("[")[0] for name in results["not_measured"])
        names = ", ".join(f"{name} ({count})" for name, count in suites.items())
        parts.insert(3, f"Not measured for want of time: {names}.")
    if rows:
        parts += [
            "## Rows",
            "![Speed-up of every row](images/benchmarks-speedup.svg)",
            "How far each row is from what the machine's bytes and operations allow:",
            "![Time over the limit](images/benchmarks-limit.svg)",
            table(rows),
            "## The first call",
            "What has to be set up, loaded or compiled, and the call itself.",
            "![Seconds of the first call](images/benchmarks-first-call.svg)",
        ]
    if any(" step" in row["name"] for row in rows):
        parts += [
            "## Whole training steps",
            "Forward, backward and optimizers, of every family.",
            "![Seconds of a training step](images/benchmarks-steps.svg)",
        ]
    parts += memory_parts(memory)
    parts += gpu_parts(rows, gpu)
    if sweeps:
        parts += ["## Size", "![Time an element by size](images/benchmarks-size.svg)"]
        for name, members in sweeps.items():
            parts += [f"### {name}", table(members)]
    notes = [note for row in found for note in problems(row)]
    hasty = [row for row in found if "left_out" in row["contestants"].get("compile", {})]
    if hasty:
        notes.append(f"compile is left out of {len(hasty)} rows, for which there was no time")
    notes += [f"{short(name)}: {why}" for name, why in results.get("failed", {}).items()]
    if notes:
        parts += ["## What did not work", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def gpu_parts(rows, gpu):
    """The section on the GPU: every row of the registry, and those of large tensors."""
    measured = [] if gpu is None else gpu.get("benchmark", {}).get("rows", [])
    small = {(row["name"], row["shape"]): row for row in measured if not row["large"]}
    missing = {"seconds": {}, "over_ours": {}}
    shown = [
        gpu_line(row, small.get((row["name"], row["shape"]), missing), "float32") for row in rows
    ]
    parts = ["## GPU"]
    if gpu is None:
        parts.append(
            "No row has been run on a GPU yet: `make gpu-check` on a machine with one writes "
            "`benchmarks/results/gpu_check.json`, and this page then holds its numbers."
        )
    else:
        rates = gpu["benchmark"]["rates"]
        parts.append(
            f"{gpu['environment']['gpu']}. Copies move {rates['copy_bytes'] / 1e9:.0f} GB/s, bfloat16 "
            f"products do {rates['bfloat16_operations'] / 1e12:.0f} Tflop/s. Inputs are rotated, so "
            "that none is in the L2 cache. *Of limit* is the share of these rates that ours reaches."
        )
    large = [gpu_line(row, row, row["dtype"]) for row in measured if row["large"]]
    head = "| row | shape | type | ours | x eager | x compile | of limit |\n|---|---|---|--:|--:|--:|--:|"
    return [*parts, "\n".join([head, *large, *shown])]


def gpu_line(row, found, dtype):
    if "error" in found:
        cells = [f"fails: {found['error']}", "", "", ""]
    elif not found["seconds"]:
        cells = ["not measured", "", "", ""]
    else:
        ratios = [found["over_ours"].get(name) for name in ("eager", "compile")]
        cells = [
            duration(found["seconds"]["ours"]),
            *("" if r is None else f"{r:.2f}" for r in ratios),
        ]
        cells.append(f"{found['of_limit']:.2f}")
    return "| " + " | ".join([row["name"], row["shape"], dtype, *cells]) + " |"


def memory_parts(rows, title="## Memory"):
    """A table of peaks, and on the whole of them the picture."""
    if not rows:
        return []
    names = list(
        dict.fromkeys(["ours", "eager", *(name for row in rows for name in row["memory"])])
    )
    head = ["row", "shape", *names, *(f"x {name}" for name in names[1:])]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    for row in rows:
        peaks = row["memory"]
        cells = [f"{peaks[name] / 2**20:.1f} MiB" if name in peaks else "-" for name in names]
        cells += [
            f"{peaks[name] / peaks['ours']:.2f}" if name in peaks else "-" for name in names[1:]
        ]
        lines.append("| " + " | ".join([row["name"], row["shape"], *cells]) + " |")
    if title != "## Memory":
        return [title, "\n".join(lines)]
    note = (
        "The most that one call needs beyond what was there before it: the peak of the process's resident set, as "
        "the system counts it, with every large piece given back at once (`benchmarks/memory.py`). So it holds what "
        "torch allocates, what kernels and libraries allocate themselves, and the results."
    )
    return [title, note, "![Peak memory](images/benchmarks-memory.svg)", "\n".join(lines)]


def more_than_others(row):
    others = [peak for name, peak in row["memory"].items() if not name.startswith("ours")]
    return any(peak < row["memory"]["ours"] for peak in others)


def short(name):
    """A row's name in pytest, without its folder."""
    return name.removeprefix("benchmarks/").replace("::test_", " ").replace("bench_", "", 1)


def loses(row):
    return any(ratio < 1 for name, ratio in row["ratios"].items() if name != "limit")


def problems(row):
    """Sentences on what is missing in a row."""
    where = f"{row['name']}, {row['shape']}"
    for name, why in failures(row):
        if "error" in row["contestants"][name]:
            yield f"{where}: {name} fails: {why}"
    if row["disagreement"]:
        yield f"{where}: no speed-up, the values are wrong: {row['disagreement']}"
    if row["noisy"] and not row["ratios"]:
        yield f"{where}: measured amid noise"


def table(rows):
    """Markdown: our time, then each of the others' with how many of ours it takes."""
    names = {name for row in rows for name in row["contestants"]}
    compiled, others = "compile" in names, bool(names - COLUMNS)
    head = ["row", "shape", "threads", "ours", "eager", *["compile"] * compiled]
    head += [*["others"] * others, "limit", "first call", *["compile's first"] * compiled]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    for row in rows:
        cells = [row["name"], row["shape"], str(row["threads"]), seconds(row, "ours")]
        cells += [against(row, "eager"), *[against(row, "compile")] * compiled]
        if others:
            peers = [name for name in row["contestants"] if name not in COLUMNS]
            cells.append("; ".join(f"{name} {against(row, name)}" for name in peers) or "-")
        cells += [duration(row["limit"]) + times(row, "limit"), seconds(row, "ours", "first_call")]
        cells += [seconds(row, "compile", "first_call")] * compiled
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against(row, name):
    return seconds(row, name) + times(row, name)


def times(row, name):
    """The row's ratio to somebody, in bold where we lose; of the limit, how many times it we take."""
    ratio = row["ratios"].get(name)
    if ratio is None:
        return ""
    text = f"{ratio:.{1 if ratio >= 10 else 2}f}x"
    return f" (**{text}**)" if ratio < 1 and name != "limit" else f" ({text})"


def seconds(row, name, key="seconds"):
    entry = row["contestants"].get(name, {})
    return "fails" if "error" in entry else duration(entry.get(key))


if __name__ == "__main__":
    main()
