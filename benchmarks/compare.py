"""Compares the ops of this checkout with those of another revision, taking turns on one machine.

    python benchmarks/compare.py --base REVISION [--only REGEX] [--rounds N]

The other revision is built in build/base, or takes this checkout's compiled modules where both have the same sources.
Each round measures both with `pyfastgan bench --quick`; a row tells the medians over the rounds and their ratio. A
difference counts where the slowest of several rounds of one is faster than the other's fastest.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "build" / "base"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, metavar="REVISION", help="what git calls it")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name it finds")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    options = parser.parse_args()
    sides = {"base": install(options.base), "here": ROOT}
    times = {"base": {}, "here": {}}
    for round_ in range(options.rounds):
        for side, path in sides.items():
            for name, seconds in measure(path, options.only, BASE / f"{side}.json").items():
                times[side].setdefault(name, []).append(seconds)
        print(f"round {round_ + 1} of {options.rounds} is done", file=sys.stderr)
    print(table(times["base"], times["here"], options.base))


def install(revision):
    """The package of a revision, compiled, in a folder of its own."""
    source, site = BASE / "source", BASE / "site"
    if source.exists():
        git("worktree", "remove", "--force", source)
    BASE.mkdir(parents=True, exist_ok=True)
    git("worktree", "add", "--detach", source, revision)
    kernels = ["csrc", "CMakeLists.txt", "setup.py"]
    changed = git("diff", "--quiet", revision, "--", *kernels, check=False).returncode
    compiled = [] if changed else list((ROOT / "pyfastgan").glob("*.so"))
    environment = {**os.environ, **({"PYFASTGAN_BUILD": "none"} if compiled else {})}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    shutil.rmtree(site, ignore_errors=True)
    subprocess.run([*pip, "--target", str(site), str(source)], env=environment, check=True)
    for module in compiled:
        shutil.copy(module, site / "pyfastgan")
    git("worktree", "remove", "--force", source)
    return site


def git(*words, check=True):
    return subprocess.run(
        ["git", *map(str, words)], cwd=ROOT, check=check, stdout=subprocess.DEVNULL
    )


def measure(path, only, file):
    """Median seconds of ours in each row, by the package in `path`."""
    command = [sys.executable, "-m", "pyfastgan", "bench", "--quick", "--force", "--no-compile"]
    command += ["--only", only, "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(command, env=environment, cwd=BASE, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"the benchmark of {path} failed")
    rows = json.loads(file.read_text())["rows"]
    return {f"{row['name']}, {row['shape']}": row["contestants"]["ours"]["seconds"] for row in rows}


def table(base, here, revision):
    """The rows that both have; what is slower comes first."""
    found = []
    for name in base.keys() & here.keys():
        old, new = statistics.median(base[name]), statistics.median(here[name])
        apart = max(min(here[name]) / max(base[name]), min(base[name]) / max(here[name]))
        found.append((old / new, name, old, new, apart > 1 and len(here[name]) > 1))
    lines = [f"| row | {revision} | here | speed-up | |", "|---|--:|--:|--:|---|"]
    for ratio, name, old, new, sure in sorted(found):
        verdict = ("slower" if ratio < 1 else "faster") if sure else "may be noise"
        lines.append(
            f"| {name} | {old * 1e6:.1f} us | {new * 1e6:.1f} us | {ratio:.2f} | {verdict} |"
        )
    for name in sorted(base.keys() ^ here.keys()):
        lines.append(f"| {name} | {'-' if name in here else 'gone'} | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
