"""The text table of results."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pyfastgan.bench.machine import Result

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
