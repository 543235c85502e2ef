"""`pytest benchmarks`: each row is measured by `pyfastgan.bench`, with its contestants in turns.

`--results FILE` writes what `benchmarks/report.py` makes docs/benchmarks.md of, after every row; `--resume` leaves out
the rows that stand in it, and `--seconds N` begins no row after that time. Without a file pytest-benchmark's own table
times our side alone, for comparing revisions with --benchmark-save and --benchmark-compare.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from pyfastgan.bench import HEADER, Bench, NoisyMachine, hardware, line, versions
from pyfastgan.ops._registry import ops

sys.path.insert(0, str(Path(__file__).parent))  # suites share contestants

BEGIN = time.monotonic()


def pytest_addoption(parser):
    group = parser.getgroup("pyfastgan")
    group.addoption("--quick", action="store_true", help="measure each row for a shorter time")
    group.addoption("--force", action="store_true", help="measure on a noisy machine, marked")
    group.addoption("--results", type=Path, metavar="FILE", help="write the results there as JSON")
    group.addoption("--resume", action="store_true", help="only rows that are not in the results")
    group.addoption("--seconds", type=float, default=math.inf, help="begin no row after that")


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leaves out what was measured before, by this revision on this machine."""
    option = config.option
    earlier = _read(option.results) if option.resume else None
    if earlier is None:
        return
    for name, now in (("versions", versions()), ("hardware", hardware())):
        if earlier[name] != now:
            raise pytest.UsageError(
                f"{option.results} was measured with other {name} ({earlier[name]}; now {now}): "
                "remove it or leave --resume out"
            )
    done = {row["id"] for row in earlier["rows"] if option.force or not row["noisy"]}
    left_out = [item for item in items if item.nodeid in done]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in done]


def _read(path):
    return json.loads(path.read_text()) if path is not None and path.exists() else None


class Results:
    """The rows measured by now, those of earlier calls among them, and what failed."""

    def __init__(self, option, bench, ids):
        self.path, self.bench, self.ids = option.results, bench, ids
        earlier = (_read(self.path) if option.resume else None) or {}
        again = set(ids)
        self.rows = [row for row in earlier.get("rows", []) if row["id"] not in again]
        self.failed = {k: v for k, v in earlier.get("failed", {}).items() if k not in again}
        noise = earlier.get("noise", {})
        bench.noise["noisy"] = bench.noisy or noise.get("noisy", False)

    def write(self, reached):
        if self.path is None:
            return
        report = self.bench.report()
        report["noise"]["noisy"] = self.bench.noise["noisy"]
        report["rows"] = self.rows + report["rows"]
        report["failed"] = self.failed
        done = {row["id"] for row in report["rows"]} | set(self.failed)
        report["not_measured"] = [name for name in self.ids if name not in done]
        report["seconds"] = reached
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(part, self.path)


@pytest.fixture(scope="session")
def bench(request):
    option, ids = request.config.option, [item.nodeid for item in request.session.items]
    try:
        deadline = BEGIN + option.seconds
        found = Bench(quick=option.quick, force=option.force, deadline=deadline)
    except NoisyMachine as problem:
        pytest.exit(f"nothing measured: {problem}; --force measures all the same", returncode=1)
    request.config.stash[_RESULTS] = found.kept = Results(option, found, ids)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{len(ids)} rows, about {len(ids) * found.pace.row:.0f} s without torch.compile")
        print(HEADER)
    return found


_RESULTS = pytest.StashKey()


@pytest.fixture(autouse=True)
def _turn(request, bench):
    """Whether there is time for this row, and how many come after it."""
    option, ids = request.config.option, bench.kept.ids
    bench.rows_left = len(ids) - ids.index(request.node.nodeid)
    if time.monotonic() > bench.deadline:
        bench.kept.write(time.monotonic() - BEGIN)
        pytest.skip(f"the {option.seconds:.0f} s are over")
    before = len(bench.results)
    yield
    for row in bench.results[before:]:
        row["id"] = request.node.nodeid
    bench.kept.write(time.monotonic() - BEGIN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    kept = item.config.stash.get(_RESULTS, None)
    if kept is not None and report.failed:
        kept.failed[item.nodeid] = str(call.excinfo.value).strip().split("\n")[0][:200]
    return report


class NoBenchmark:
    """What stands in for pytest-benchmark where that is left out, since our own times are what counts."""

    def __init__(self):
        self.extra_info = {}

    def __call__(self, call, *_, **__):
        return None

    pedantic = __call__

    @pytest.fixture(name="benchmark")
    def fixture(self):
        return NoBenchmark()


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(NoBenchmark(), "no-benchmark")


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
