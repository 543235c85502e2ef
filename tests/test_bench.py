"""`pyfastgan bench`: what is measured, when nothing is reported, and what the report page says."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pyfastgan as pf
from pyfastgan import bench
from pyfastgan.bench import machine, measure
from pyfastgan.bench.turns import take_turns
from pyfastgan.ops._backends import choice
from pyfastgan.ops._registry import Row, ops

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"busy": 0.0, "spread": 0.0, "fastest": 1e-9}


@pytest.fixture
def quick(monkeypatch):
    """A bench on a machine that says it is quiet, with rows of a few milliseconds."""
    monkeypatch.setattr(machine, "busy_share", lambda: 0.0)
    monkeypatch.setattr(measure, "_QUICK", measure.Pace(0.02, 1e-4, 1.0, 0.1))
    monkeypatch.setattr(machine, "spread", lambda times, fastest: 0.0)
    return lambda **options: bench.Bench(quick=True, compile_eager=False, **options)


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def row_of(calls, **amounts):
    return Row("a row", "a shape", lambda: dict(calls), **{"bytes": 0, **amounts})


def test_a_row_compares_medians_in_turns_and_keeps_first_calls(quick):
    order = []

    def slow_at_first(name, seconds):
        def call():
            spin(seconds if name in order else 20 * seconds)
            order.append(name)

        return call

    calls = {name: slow_at_first(name, s) for name, s in (("ours", 1e-4), ("eager", 4e-4))}
    result = quick().measure(row_of(calls, bytes=1e6), [ops()["bias_act"]])
    ours, eager = result["contestants"]["ours"], result["contestants"]["eager"]
    assert 1e-4 <= ours["quartiles"][0] <= ours["seconds"] <= ours["quartiles"][1]
    assert ours["first_call"] >= 20e-4
    assert eager["first_call"] >= 80e-4
    assert result["ratios"]["eager"] == eager["seconds"] / ours["seconds"] > 1
    assert result["ratios"]["limit"] == ours["seconds"] / result["limit"]
    assert result["limit"] == pytest.approx(1e6 / result["copy_bytes_per_second"])
    # Few turns would mean that one contestant was measured after the other.
    turns = [name for name, before in zip(order, [None, *order]) if name != before]
    assert len(turns) > 10


def test_the_limit_is_the_slower_of_memory_and_arithmetic(quick):
    bias_act = ops()["bias_act"]
    calls = {"ours": lambda: None, "eager": lambda: None}
    result = quick().measure(row_of(calls, bytes=8, flops=1e12), [bias_act])
    assert result["limit"] == pytest.approx(1e12 / result["product_flops_per_second"])
    assert quick().measure(row_of(calls), [bias_act])["limit"] is None


def test_what_cannot_be_compiled_says_so_and_others_may_not_fail(quick):
    def fail():
        raise RuntimeError("no C++ compiler\nwas found")

    measuring = quick()
    measuring.compile_eager, measuring._compiled_before = True, True
    calls = {"ours": lambda: None, "eager": lambda: None, "compile": fail}
    result = measuring.measure(row_of(calls), [])
    assert result["contestants"]["compile"] == {"error": "RuntimeError: no C++ compiler"}
    assert set(result["ratios"]) == {"eager"}
    assert "compile RuntimeError: no C++ compiler" in bench.line(result)
    with pytest.raises(RuntimeError, match="no C"):
        measuring.measure(row_of({"ours": fail, "eager": lambda: None}), [])


def test_slow_contestants_have_fewer_turns():
    calls = {"fast": lambda: spin(1e-3), "slow": lambda: spin(0.05)}
    times = take_turns(calls, 0.1, 1e-3)
    assert len(times["slow"]) == 2
    assert len(times["fast"]) == 5
    even = take_turns({"a": lambda: spin(1e-3), "b": lambda: spin(2e-3)}, 0.1, 1e-3)
    assert len(even["a"]) == len(even["b"]) > 5


def test_compiling_has_a_limit(quick):
    def endless():
        spin(60.0)

    def forgetful():
        try:
            endless()
        except RuntimeError as error:
            raise ValueError("inductor wraps what it meets") from error

    measuring = quick()
    measuring.compile_eager, measuring._compiled_before = True, True
    for call in (endless, forgetful):
        calls = {"ours": lambda: None, "eager": lambda: None, "compile": call}
        begin = time.monotonic()
        result = measuring.measure(row_of(calls), [])
        assert time.monotonic() - begin < 30
        assert result["contestants"]["compile"] == {"error": "not compiled within 1 s"}
    # With many rows to come before the deadline nothing is compiled.
    measuring.deadline, measuring.rows_left = time.monotonic() + 10.0, 200
    result = measuring.measure(row_of(calls), [])
    assert "no time left" in result["contestants"]["compile"]["left_out"]
    assert "compile left out: there was no time" in bench.line(result)


def test_an_op_with_wrong_values_gets_no_speed_up(quick):
    right = ops()["bias_act"]
    wrong = replace(right, function=lambda *args, **kwargs: right.function(*args, **kwargs) * 1.001)
    calls = {"ours": lambda: None, "eager": lambda: None}
    assert quick().measure(row_of(calls), [right])["ratios"]
    result = quick().measure(row_of(calls), [wrong])
    assert not result["ratios"]
    assert "bias_act, linear, torch.float32" in result["disagreement"]
    assert f"the values are wrong: {result['disagreement']}" in bench.line(result)


def test_what_is_checked_are_the_compiled_kernels():
    """Where small calls are torch's own, as those of the samples are, wrong kernels would pass unseen."""
    right = ops()["bernoulli_nll"]
    asked = []

    def function(*args):
        asked.append(choice.name)
        return right.function(*args) * (1.001 if choice.name == "cpu" else 1)

    with pf.use_backend("auto"):
        assert measure.disagreement(right) is None
        assert measure.disagreement(replace(right, function=function)) is not None
        assert choice.name == "auto"
    assert set(asked) == {"cpu"}
    with pf.use_backend("reference"):  # whoever chooses by name is checked on that
        assert measure.disagreement(replace(right, function=function)) is None
    assert set(asked) == {"cpu", "reference"}


def test_a_noisy_machine_gets_no_report(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine, "noise", lambda: {**QUIET, "busy": 0.5})
    file = tmp_path / "rows.json"
    assert bench.main(["--only", "random_normal", "--json", str(file)]) == 1
    shown = capsys.readouterr()
    assert "other programs use 50% of the processor" in shown.err
    assert not shown.out
    assert not file.exists()


def test_noise_during_a_row_withholds_its_ratios(quick, monkeypatch):
    spreads = iter([5.0, 5.0, 5.0, 0.0])
    monkeypatch.setattr(bench.Bench, "_spread", lambda self, steady: next(spreads))
    calls = {"ours": lambda: None, "eager": lambda: None}
    measuring = quick()
    noisy = measuring.measure(row_of(calls), [])
    assert noisy["noisy"]
    assert not noisy["ratios"]
    quiet = measuring.measure(row_of(calls), [])  # noisy at first, then quiet
    assert not quiet["noisy"]
    assert quiet["ratios"]


def test_other_work_is_seen_as_noise():
    assert machine.spread([1.0] * 8 + [3.0] * 2, 1.0) == pytest.approx(2.0)
    assert machine.spread([2.0] * 10, 1.0) == pytest.approx(1.0)  # slow all along
    assert machine.spread([1.0] * 95 + [3.0] * 5, 1.0) == 0  # a few interruptions are not


def test_the_command_measures_the_rows_asked_for_and_writes_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measure, "_QUICK", measure.Pace(0.02, 1e-4, 1.0, 0.1))
    file, threads = tmp_path / "rows.json", torch.get_num_threads()
    words = ["--quick", "--force", "--no-compile", "--threads", "1", "--only", "normal, 200"]
    assert bench.main([*words, "--json", str(file)]) == 0
    assert torch.get_num_threads() == threads
    assert "random_normal, 200 thousand" in capsys.readouterr().out
    report = json.loads(file.read_text())
    (row,) = report["rows"]
    assert row["name"] == "random_normal"
    assert row["threads"] == 1
    assert set(row["contestants"]) == {"ours", "eager"}
    assert set(row["ratios"]) == {"eager", "limit"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["hardware"]["cores"] >= 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "("], "--only must be a regular expression"),
        (["--only", "nothing of this name"], "matches no row"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--json", "no/such/folder/rows.json"], "--json must name a file in a folder that exists"),
    ],
)
def test_options_that_make_no_sense(words, says):
    with pytest.raises(ValueError, match=says):
        bench.main(words)


def entry(seconds):
    return {"seconds": seconds, "quartiles": [seconds, seconds], "first_call": seconds}


def finding(name, ratio, **more):
    return {
        "name": name,
        "shape": "8",
        "threads": 1,
        "contestants": {"ours": entry(1e-3), "eager": entry(ratio * 1e-3)},
        "limit": 1e-4,
        "noisy": False,
        "disagreement": None,
        "ratios": {"eager": ratio, "limit": 10.0},
        **more,
    }


def test_the_page_lists_the_rows_where_we_lose_first(tmp_path):
    failing = {"ours": entry(1e-3), "eager": entry(2e-3), "compile": {"error": "Oh: no"}}
    peers = {"ours": entry(1e-3), "eager": entry(2e-3), "a peer": entry(9e-4)}
    results = {
        "hardware": {"cpu": "a processor", "cores": 2, "threads": 1, "isa": None},
        "versions": {"python": "3", "torch": "2", "pyfastgan": "0", "revision": "abc"},
        "noise": {**QUIET, "noisy": False},
        "rows": [
            finding("winner", 2.0, contestants=failing),
            finding("loser", 0.5),
            finding("swept", 0.25, sweep="a sweep", elements=8),
            finding("wrong", 3.0, disagreement="off by 1", ratios={}),
            finding("a step", 2.0, contestants=peers, ratios={"eager": 2.0, "a peer": 0.9}),
            {"name": "large", "shape": "8", "memory": {"ours": 2**21, "eager": 2**20}},
            {"name": "small", "shape": "8", "memory": {"ours": 2**20, "eager": 2**22}},
        ],
        "not_measured": ["benchmarks/bench_late.py::test_row[8]"],
        "failed": {"benchmarks/bench_bad.py::test_row": "no such thing"},
    }
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(results))
    front = tmp_path / "README.md"
    front.write_text("before\n<!-- speed: benchmarks/report.py -->old<!-- end of speed -->\nafter")
    tmp_path /= "docs"
    command = [sys.executable, "benchmarks/report.py", str(file), "--docs", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert front.read_text().startswith("before\n<!-- speed: benchmarks/report.py -->\n| row |")
    assert front.read_text().endswith("--:|\n<!-- end of speed -->\nafter")
    page = (tmp_path / "benchmarks.md").read_text()
    lost, rest = page.split("## Where we lose")[1].split("## Rows")
    assert "| loser | 8 | 1 | 1.00 ms | 500 us (**0.50x**) | - | 100 us (10.0x) | 1.00 ms |" in lost
    assert "| swept |" in lost
    assert "winner" not in lost
    assert (
        "| winner | 8 | 1 | 1.00 ms | 2.00 ms (2.00x) | fails | - | 100 us (10.0x) | 1.00 ms | fails |"
        in rest
    )
    line = "| a step | 8 | 1 | 1.00 ms | 2.00 ms (2.00x) | a peer 900 us (**0.90x**) | 100 us |"
    assert line in lost
    assert "- winner, 8: compile fails: Oh: no" in rest
    assert "- wrong, 8: no speed-up, the values are wrong: off by 1" in rest
    assert "noisy machine" not in page
    assert "| large | 8 | 2.0 MiB | 1.0 MiB | 0.50 |" in lost
    assert "small" not in lost
    assert "| small | 8 | 1.0 MiB | 4.0 MiB | 4.00 |" in rest
    assert "Not measured for want of time: late.py row (1)." in page
    assert "- bad.py row: no such thing" in page
    for name in ("speedup", "size", "limit", "first-call", "steps", "memory"):
        assert f"images/benchmarks-{name}.svg" in page
        assert (tmp_path / "images" / f"benchmarks-{name}.svg").read_text().startswith("<?xml")


def test_the_tables_of_readme_and_the_pages_are_made_of_the_results():
    """`python benchmarks/report.py` writes them."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import tables

    results = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    rows = [row for row in results["rows"] if "memory" not in row and "sweep" not in row]
    lines = tables.table(rows).splitlines()
    assert len(lines) == 2 + len(tables.ROWS), "a row of README is not in the results"
    marked = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        assert tables.filled(text, rows) == text, page.name
        for _, names, _ in tables.MARKED.findall(text):
            marked += 1
            for name in names.split(","):
                assert any(row["name"].startswith(name.strip()) for row in rows), name
    assert marked >= 4
    assert "\n".join(lines) in (ROOT / "README.md").read_text()
    page = (ROOT / "docs/benchmarks.md").read_text()
    for row in results["rows"]:
        cells = f"| {row['name']} | {row['shape']} | "
        if "memory" not in row:
            cells += f"{row['threads']} | {bench.duration(row['contestants']['ours']['seconds'])} |"
        assert cells in page
    for row in [*rows[:1], {"name": "gone", "ratios": {}}]:
        assert tables.table([{**row, "shape": "else"}]).count("\n") == 1
    text = "<!-- rows: b, c -->\nold\n<!-- end of rows -->"
    made = [{"name": n, "shape": "2", "contestants": {"ours": {"seconds": 1.0}}, "ratios": {"eager": r}}
            for n, r in (("a", 3.0), ("b", 0.5), ("cd", 12.3))]  # fmt: skip
    assert tables.filled(text, made) == (
        "<!-- rows: b, c -->\n\n| row | shape | ours | eager |\n|---|---|--:|--:|\n"
        "| b | 2 | 1.00 s | **0.50x** |\n| cd | 2 | 1.00 s | 12x |\n\n<!-- end of rows -->"
    )


def test_the_suites_measure_and_write_what_the_page_is_made_of_and_go_on(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_random.py", "-q", "--quick"]
    command += ["--force", "--results", str(file)]

    def run(*words):
        done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(file.read_text())

    (row,) = run("-k", "test_normals_by_size and 1000-1")["rows"]
    assert row["sweep"] == "random_normal"
    assert row["elements"] == 1000
    assert row["threads"] == 1
    assert row["id"] == "benchmarks/bench_random.py::test_normals_by_size[1000-1]"
    # The row that is there is kept; one that may not begin any more is named.
    results = run(
        "--resume", "--seconds", "0", "-k", "test_normals_by_size and (1000-1 or 10000-1)"
    )
    assert results["rows"] == [row]
    assert results["not_measured"] == [row["id"].replace("1000", "10000")]
