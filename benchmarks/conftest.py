"""`pytest benchmarks`: each row is measured by `pyfastgan.bench`, with its contestants in turns.

`--results FILE` writes what `benchmarks/report.py` makes docs/benchmarks.md of. pytest-benchmark's
own table times our side alone, for comparing revisions with --benchmark-save and
--benchmark-compare.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from pyfastgan.bench import HEADER, Bench, NoisyMachine, line
from pyfastgan.ops._registry import ops

sys.path.insert(0, str(Path(__file__).parent))  # suites share contestants


def pytest_addoption(parser):
    group = parser.getgroup("pyfastgan")
    group.addoption("--quick", action="store_true", help="measure each row for a shorter time")
    group.addoption("--force", action="store_true", help="measure on a noisy machine, marked")
    group.addoption("--results", type=Path, metavar="FILE", help="write the results there as JSON")


def pytest_generate_tests(metafunc):
    """A row for every line of the tables, a size and a number of threads for every sweep."""
    if "row" in metafunc.fixturenames:
        rows = [(ops()[name], row) for name in metafunc.module.OPS for row in ops()[name].rows()]
        names = [f"{row.name}, {row.shape}" for _, row in rows]
        metafunc.parametrize(("op", "row"), rows, ids=names)
    if "elements" in metafunc.fixturenames:
        step = 2 if metafunc.config.option.quick else 1
        sizes = [int(10 ** (k / 2)) for k in range(6, 17, step)]
        metafunc.parametrize("elements", sizes)
        metafunc.parametrize("threads", sorted({1, torch.get_num_threads()}))


@pytest.fixture(scope="session")
def bench(request):
    option = request.config.option
    try:
        found = Bench(quick=option.quick, force=option.force)
    except NoisyMachine as problem:
        pytest.exit(f"nothing measured: {problem}; --force measures all the same", returncode=1)
    print(f"\n{HEADER}")
    yield found
    if option.results is not None:
        option.results.parent.mkdir(parents=True, exist_ok=True)
        option.results.write_text(json.dumps(found.report(), indent=1) + "\n")


@pytest.fixture
def measure(bench, capsys):
    """Measures a row and prints it; fails where that gave no speed-up that may be reported."""

    def run(row, served_by, *, threads=None, compile_eager=True):
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            result = bench.measure(row, served_by, compile_eager)
        finally:
            torch.set_num_threads(before)
        with capsys.disabled():
            print(f"\n{line(result)}", end="")
        assert not result["disagreement"], result["disagreement"]
        assert bench.force or not result["noisy"], "measured amid noise, twice"
        return result

    return run
