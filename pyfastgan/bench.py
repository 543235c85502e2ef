"""Measures the installed ops from the rows of the registry: `pyfastgan bench`.

The contestants of a row take turns in one process, so that what disturbs the machine disturbs all
of them alike, and their medians are compared. Beside ours and eager PyTorch stand `torch.compile`
of the eager one, the time of everybody's first call, and the physical limit: the bytes that must
move over the copy bandwidth for buffers of that size, or the operations over the rate of a matrix
product, whichever takes longer. Both rates are measured between the turns of the contestants.

A noisy machine gets no report, and an op whose values are not its reference's gets no speed-up.

What a row may cost is bounded: its turns share a fixed time, in which a slow contestant has fewer of
them, and compiling has a limit of its own, which shrinks as a deadline for all rows comes nearer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyfastgan import __version__, testing
from pyfastgan.ops import _backends
from pyfastgan.ops._registry import Op, Row, ops

# The most that other programs may use of the processor, and the most that a fixed workload may
# vary: on a quiet machine its slow tenth lies 5 to 10% above its fastest run, beside another
# program on the same cores 200% and more.
BUSY_LIMIT = 0.15
SPREAD_LIMIT = 0.3


class Pace(NamedTuple):
    """Seconds of all turns of a row, of one turn of a contestant (long enough for the clock and for a fork), that
    `torch.compile` may take, and that a row needs otherwise, in the mean over all rows."""

    seconds: float
    turn: float
    compiling: float
    row: float


_FULL, _QUICK = Pace(3.0, 2e-3, 90.0, 6.0), Pace(0.6, 1e-3, 20.0, 1.6)
_ROUNDS = (5, 200)
# A median and quartiles of fewer turns would say nothing.
_FEWEST = 2
# A copy of less than this measures the call, not the memory.
_SMALLEST_COPY = 4 << 20
_PRODUCT = 1024

Call = Callable[[], Any]
Result = dict[str, Any]


class NoisyMachine(RuntimeError):
    """The machine does other work, and what is measured on it would be wrong."""


class Bench:
    """Measures rows one after another and keeps the results.

    Args:
        quick: A fifth of the time for each row.
        compile_eager: Whether `torch.compile` takes part.
        force: Measure amid noise too; the results are marked.
        deadline: When all rows should be done, as `time.monotonic` counts; compiling gets what the `rows_left`, an
            attribute that the caller keeps up to date, do not need.

    Raises:
        NoisyMachine: There is noise, and no `force`.
    """

    def __init__(
        self,
        *,
        quick: bool = False,
        compile_eager: bool = True,
        force: bool = False,
        deadline: float = math.inf,
    ) -> None:
        self.pace = _QUICK if quick else _FULL
        self.compile_eager, self.force = compile_eager, force
        self.deadline, self.rows_left = deadline, 1
        self.noise = noise()
        self._fastest = {torch.get_num_threads(): self.noise.pop("fastest")}
        self.results: list[Result] = []
        self._disagreement: dict[str, str | None] = {}
        busy, spread = self.noise["busy"] or 0.0, self.noise["spread"]
        self.noisy = busy > BUSY_LIMIT or spread > SPREAD_LIMIT
        if self.noisy and not force:
            raise NoisyMachine(
                f"other programs use {busy:.0%} of the processor (at most {BUSY_LIMIT:.0%} is "
                f"allowed) and a fixed workload varies by {spread:.0%} (at most {SPREAD_LIMIT:.0%})"
            )
        if compile_eager:
            # An empty cache, so that the first call of a compiled function is one.
            self._cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._cache.name
        self._compiled_before = False

    def _compiling(self) -> float:
        """Seconds that compiling may take in the next row."""
        others = self.rows_left * self.pace.row
        return min(self.pace.compiling, self.deadline - time.monotonic() - others)

    def measure(self, row: Row, served_by: Sequence[Op], compile_eager: bool = True) -> Result:
        """Measures a row whose "ours" calls the ops `served_by`, a second time if there was noise.

        The result is what the JSON file holds for a row; it has no ratios if the values disagree
        or there was noise again.
        """
        contestants = row.make()
        compiling, left_out = self._compiling(), {}
        if not (compile_eager and self.compile_eager and "eager" in contestants):
            contestants.pop("compile", None)
        elif compiling < 1:
            contestants.pop("compile", None)
            left_out["compile"] = {"left_out": "there was no time left for compiling"}
        elif "compile" not in contestants:
            contestants["compile"] = torch.compile(contestants["eager"])
        if "compile" in contestants and not self._compiled_before:
            # What torch.compile sets up once in a process is no row's first call.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _first_calls({"compile": _compiled_sum()}, 3 * self.pace.compiling)
            self._compiled_before = True
        torch.compiler.reset()  # else what earlier rows compiled counts as recompilations
        first_call, errors = _first_calls(contestants, compiling)
        calls = {name: call for name, call in contestants.items() if name not in errors}
        gauges = _gauges(row)
        for _ in range(2):
            times = _take_turns({**calls, **gauges}, self.pace.seconds, self.pace.turn)
            spread = self._spread(times["steady"])
            if spread <= SPREAD_LIMIT:
                break
        for op in served_by:
            if op.name not in self._disagreement:
                self._disagreement[op.name] = disagreement(op)
        found = [self._disagreement[op.name] for op in served_by]
        kernels = [op.kernels[0] for op in served_by if op.kernels]
        result: Result = {
            "name": row.name,
            "shape": row.shape,
            "threads": torch.get_num_threads(),
            "backend": ", ".join(sorted({k.serving(torch.device("cpu")) for k in kernels})),
            "contestants": {name: {"error": text} for name, text in errors.items()} | left_out,
            "spread": spread,
            "noisy": self.noisy or spread > SPREAD_LIMIT,
            "disagreement": next((text for text in found if text), None),
        }
        for name in calls:
            low, median, high = statistics.quantiles(times[name], n=4)
            entry = {"seconds": median, "quartiles": [low, high], "first_call": first_call[name]}
            result["contestants"][name] = entry
        result |= _limit(row, times)
        honest = result["disagreement"] is None and (self.force or not result["noisy"])
        result["ratios"] = _ratios(result) if honest else {}
        self.results.append(result)
        return result

    def _spread(self, steady: list[float]) -> float:
        threads = torch.get_num_threads()
        self._fastest[threads] = min(*steady, self._fastest.get(threads, math.inf))
        return _spread(steady, self._fastest[threads])

    def report(self) -> Result:
        """Everything that was measured, and on what; for a JSON file."""
        return {
            "hardware": hardware(),
            "versions": versions(),
            "noise": {**self.noise, "noisy": self.noisy},
            "rows": self.results,
        }


def _first_calls(
    contestants: dict[str, Call], compiling: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of the first call of each, and why `torch.compile` failed if it did."""
    seconds, errors = {}, {}
    for name, call in contestants.items():
        if name != "compile":
            seconds[name] = _time(call)
            continue
        late: list[bool] = []
        try:
            with warnings.catch_warnings(), _at_most(compiling, late):
                warnings.simplefilter("ignore")
                seconds[name] = _time(call)
        except Exception as error:
            text = re.split(r"\n|\. ", str(error).strip())[0]
            errors[name] = f"{type(error).__name__}: {text}"
            if late:  # whatever became of the exception on its way
                errors[name] = f"not compiled within {compiling:.0f} s"
                _wait_for_compilers()
    return seconds, errors


class _OutOfTime(RuntimeError):
    """Compiling lasted too long."""


@contextmanager
def _at_most(seconds: float, late: list[bool]) -> Iterator[None]:
    """Raises `_OutOfTime` within after these seconds, where a process can be interrupted; `late` then says so."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(*_: object) -> None:
        late.append(True)
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _wait_for_compilers() -> None:
    """What an interrupted compilation had started goes on for some seconds, and is noise."""
    for _ in range(10):
        if (_busy() or 0) <= BUSY_LIMIT:
            break


def _compiled_sum() -> Call:
    x = torch.randn(256)
    return torch.compile(lambda: x + x.exp())


def _time(call: Call, count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _take_turns(calls: dict[str, Call], seconds: float, turn: float) -> dict[str, list[float]]:
    """Seconds of a call in every turn; each round starts with another contestant.

    Where a few rounds take longer than `seconds`, those that take the most of it sit out some rounds.
    """
    names = list(calls)
    counts, lengths = {}, {}
    for name, call in calls.items():
        once = _time(call)
        if once < turn:
            once = min(once, _time(call), _time(call))
        counts[name] = max(1, math.ceil(turn / once))
        lengths[name] = once * counts[name]
    rounds = min(max(int(seconds / sum(lengths.values())), _ROUNDS[0]), _ROUNDS[1])
    turns = dict.fromkeys(names, rounds)
    if rounds == _ROUNDS[0]:
        share = seconds / len(names)
        turns = {name: min(rounds, max(int(share / lengths[name]), _FEWEST)) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            if (k + 1) * turns[name] // rounds > len(times[name]):
                times[name].append(_time(calls[name], counts[name]))
    return times


def _gauges(row: Row) -> dict[str, Call]:
    """What is measured between the contestants: a workload that shows noise, and the limits."""
    gauges = {"steady": _steady()}
    if row.bytes:
        source = torch.zeros(_copied(row) // 2, dtype=torch.uint8)
        target = torch.zeros_like(source)
        gauges["copy"] = lambda: target.copy_(source)
    if row.flops:
        a, b = torch.randn(2, _PRODUCT, _PRODUCT)
        c = torch.empty_like(a)
        gauges["product"] = lambda: torch.mm(a, b, out=c)
    return gauges


def _steady() -> Call:
    a = torch.randn(256, 256)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def _copied(row: Row) -> int:
    """Bytes that the copy reads and writes."""
    return max(int(row.bytes), _SMALLEST_COPY)


def _limit(row: Row, times: dict[str, list[float]]) -> dict[str, float | None]:
    """The seconds that the machine needs at least, and the rates that say so."""
    bandwidth = _copied(row) / statistics.median(times["copy"]) if row.bytes else None
    rate = 2 * _PRODUCT**3 / statistics.median(times["product"]) if row.flops else None
    limit = max(row.bytes / bandwidth if bandwidth else 0, row.flops / rate if rate else 0)
    return {
        "limit": limit or None,
        "copy_bytes_per_second": bandwidth,
        "product_flops_per_second": rate,
    }


def _spread(times: list[float], fastest: float) -> float:
    """How far the slow tenth lies above the fastest, as a share of the fastest."""
    return sorted(times)[int(0.9 * len(times))] / fastest - 1


def _busy() -> float | None:
    """The share of the processor that others use while this process sleeps; None if unknown."""

    def ticks() -> tuple[int, int]:
        text = Path("/proc/stat").read_text().splitlines()[0]
        counts = [int(word) for word in text.split()[1:9]]
        return sum(counts) - counts[3] - counts[4], sum(counts)  # idle and waiting for a disk

    try:
        before = ticks()
        time.sleep(1.0)
        busy, total = (b - a for a, b in zip(before, ticks()))
        return busy / total
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None


def noise() -> Result:
    """How busy others keep the machine, and how much a fixed workload on all threads varies."""
    busy = _busy()
    times = _take_turns({"steady": _steady()}, 0.2, 1e-3)["steady"]
    return {"busy": busy, "spread": _spread(times, min(times)), "fastest": min(times)}


def disagreement(op: Op) -> str | None:
    """What the first sample call says whose results are not the reference's; None if all are."""
    for sample in op.samples:
        try:
            testing.check_values(op, sample, torch.float32)
        except AssertionError as error:
            return str(error).splitlines()[0]
    return None


def _ratios(result: Result) -> dict[str, float]:
    """Everybody's time over ours, and ours over the limit."""
    times = {k: v["seconds"] for k, v in result["contestants"].items() if "seconds" in v}
    ours = times.pop("ours")
    ratios = {name: seconds / ours for name, seconds in times.items()}
    return ratios | ({"limit": ours / result["limit"]} if result["limit"] else {})


def hardware() -> Result:
    """Processor, cores, threads and instruction set of the compiled kernels."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = names[0] if names else name
    isa = None if _backends.missing("cpu") else _backends.native("_cpu").isa
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "isa": isa}


def versions() -> Result:
    """Of Python, torch and pyfastgan, with the git revision if this is a checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A wheel may lie inside somebody else's repository.
    ours = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyfastgan": __version__,
        "revision": git("describe", "--always", "--dirty") if ours else None,
    }


HEADER = """\
       ours    eager  compile    limit    eager  compile     ours     first call of
                                         / ours   / ours  / limit     ours  compile"""


def duration(seconds: float | None) -> str:
    """Seconds with three digits and a unit."""
    if seconds is None:
        return "-"
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    digits = max(0, 2 - int(math.log10(max(seconds * scale, 1))))
    return f"{seconds * scale:.{digits}f} {unit}"


def failures(result: Result) -> Iterator[tuple[str, str]]:
    """The contestants that have no time, and why."""
    for name, entry in result["contestants"].items():
        if "seconds" not in entry:
            yield name, entry.get("error") or f"left out: {entry['left_out']}"


def line(result: Result) -> str:
    """A row of the text table: its name, below it the numbers, below those what went wrong."""
    found, ratios = result["contestants"], result["ratios"]

    def seconds(name: str, key: str = "seconds") -> str:
        entry = found.get(name, {})
        return "fails" if "error" in entry and key == "seconds" else duration(entry.get(key))

    def ratio(name: str) -> str:
        return f"{ratios[name]:.2f}x" if name in ratios else "-"

    cells = [seconds("ours"), seconds("eager"), seconds("compile"), duration(result["limit"])]
    cells += [ratio("eager"), ratio("compile"), ratio("limit")]
    cells += [seconds("ours", "first_call"), seconds("compile", "first_call")]
    peers = [name for name in found if name not in ("ours", "eager", "compile")]
    lines = [
        f"{result['name']}, {result['shape']}",
        "  " + "".join(f"{cell:>9}" for cell in cells),
        *(f"    {name} {seconds(name)}, {ratio(name)} ours" for name in peers),
        *(f"    {name} {text}" for name, text in failures(result)),
    ]
    if result["disagreement"]:
        lines.append(f"    no speed-up, the values are wrong: {result['disagreement']}")
    elif result["noisy"]:
        lines.append("    measured amid noise")
    return "\n".join(lines)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pyfastgan bench",
        description="Measure the installed ops against PyTorch and against the machine's limit.",
    )
    parser.add_argument("--quick", action="store_true", help="measure each row for a shorter time")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="rows whose name or shape it finds"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: torch's)")
    parser.add_argument("--force", action="store_true", help="report from a noisy machine, marked")
    options = parser.parse_args(argv)
    try:
        re.compile(options.only)
    except re.error as error:
        raise ValueError(f"--only must be a regular expression, got {options.only!r}") from error
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {options.threads}")
    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"--json must name a file in a folder that exists, got {options.json}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measures every row of the registry and prints a table.

    Args:
        argv: The options, see `pyfastgan bench --help`; by default those of this process.

    Returns:
        The exit status: 0, or 1 if the machine was too noisy for a report.

    Raises:
        ValueError: An option has a value that makes no sense.
    """
    options = _options(argv)
    rows = [(op, row) for op in ops().values() for row in op.rows()]
    rows = [(o, r) for o, r in rows if re.search(options.only, f"{o.name} {r.name}, {r.shape}")]
    if not rows:
        raise ValueError(f"--only {options.only!r} matches no row")
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        bench = Bench(
            quick=options.quick, compile_eager=not options.no_compile, force=options.force
        )
        print(HEADER)
        for op, row in rows:
            print(line(bench.measure(row, [op])), flush=True)
        report = bench.report()
    except NoisyMachine as problem:
        print(f"nothing measured: {problem}; --force measures all the same", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    noisy = sum(result["noisy"] for result in bench.results)
    if noisy:
        print(f"{noisy} of {len(rows)} rows were measured amid noise", file=sys.stderr)
    return 1 if noisy and not options.force else 0
