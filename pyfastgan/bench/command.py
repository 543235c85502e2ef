"""The command `pyfastgan bench`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pyfastgan.bench.machine import NoisyMachine
from pyfastgan.bench.measure import Bench
from pyfastgan.bench.table import HEADER, line
from pyfastgan.ops._registry import ops


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
