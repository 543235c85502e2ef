"""Measures the rows of the registry one after another."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pyfastgan import testing
from pyfastgan.bench import machine
from pyfastgan.bench.first_calls import compiled_sum, first_calls
from pyfastgan.bench.machine import (
    BUSY_LIMIT,
    SPREAD_LIMIT,
    NoisyMachine,
    Result,
    hardware,
    versions,
)
from pyfastgan.bench.turns import Call, steady, take_turns
from pyfastgan.ops._backends import choice, use_backend
from pyfastgan.ops._registry import Op, Row


class Pace(NamedTuple):
    """Seconds of all turns of a row, of one turn of a contestant (so long that its first call, which finds caches and
    allocator as another contestant left them, weighs little), that `torch.compile` may take, and that a row needs
    otherwise, in the mean over all rows."""

    seconds: float
    turn: float
    compiling: float
    row: float


_FULL, _QUICK = Pace(3.0, 10e-3, 90.0, 6.0), Pace(0.6, 5e-3, 20.0, 1.6)


# A copy of less than this measures the call, not the memory.
_SMALLEST_COPY = 4 << 20


_PRODUCT = 1024


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
        self.noise = machine.noise()
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
                first_calls({"compile": compiled_sum()}, 3 * self.pace.compiling)
            self._compiled_before = True
        torch.compiler.reset()  # else what earlier rows compiled counts as recompilations
        first_call, errors = first_calls(contestants, compiling)
        calls = {name: call for name, call in contestants.items() if name not in errors}
        gauges = _gauges(row)
        for _ in range(2):
            times = take_turns({**calls, **gauges}, self.pace.seconds, self.pace.turn)
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
        return machine.spread(steady, self._fastest[threads])

    def report(self) -> Result:
        """Everything that was measured, and on what; for a JSON file."""
        return {
            "hardware": hardware(),
            "versions": versions(),
            "noise": {**self.noise, "noisy": self.noisy},
            "rows": self.results,
        }


def _gauges(row: Row) -> dict[str, Call]:
    """What is measured between the contestants: a workload that shows noise, and the limits."""
    gauges = {"steady": steady()}
    if row.bytes:
        source = torch.zeros(_copied(row) // 2, dtype=torch.uint8)
        target = torch.zeros_like(source)
        gauges["copy"] = lambda: target.copy_(source)
    if row.flops:
        a, b = torch.randn(2, _PRODUCT, _PRODUCT)
        c = torch.empty_like(a)
        gauges["product"] = lambda: torch.mm(a, b, out=c)
    return gauges


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


def disagreement(op: Op) -> str | None:
    """What the first sample call says whose results are not the reference's; None if all are. Of the
    compiled kernels, also where small calls are left to torch, whose rounding is its own."""
    chosen = choice.name
    kernels = chosen == "auto" and "cpu" in testing.backends(op)
    with use_backend("cpu" if kernels else chosen):
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
