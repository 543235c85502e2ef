"""Puts the results of the mode suite on docs/mode-collapse.md, between its two marks, with its pictures.

    pyfastgan evaluate modes --out runs/modes
    python benchmarks/modes_report.py runs/modes

The rows are kept in benchmarks/results/modes.json: those of the same data and system are replaced.
"""

import json
import shutil
import sys
from pathlib import Path

from pyfastgan.gan import system_config

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results" / "modes.json"
PAGE = ROOT / "docs" / "mode-collapse.md"
IMAGES = ROOT / "docs" / "images"
START, END = "<!-- the results -->\n", "<!-- end of the results -->\n"


def main():
    out = Path(sys.argv[1])
    rows = json.loads(KEPT.read_text()) if KEPT.is_file() else []
    new = json.loads((out / "modes.json").read_text())
    pictures = {}
    for row in new:
        # The folder of data from disk is whose machine it is.
        name, folder, _ = row["data"].partition(":")
        picture = out / f"{row['data'].replace(':', '-').replace('/', '-')}.png"
        pictures[picture] = f"modes-{name}-{row['steps']}.png"
        row["data"] = name + (":ROOT" if folder else "")
    for row in new:
        for run in row["runs"]:
            run.pop("seconds", None)  # of a machine that did other work, too
    replaced = {(row["data"], row["system"]) for row in new}
    rows = [row for row in rows if (row["data"], row["system"]) not in replaced] + new
    rows.sort(key=lambda row: row["data"] != "ring8")  # stable: the order within is the suite's
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(rows, indent=1) + "\n")
    for picture, name in pictures.items():
        shutil.copy(picture, IMAGES / name)
    text = PAGE.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    PAGE.write_text(
        before + START + "".join(part(data, rows) for data in names(rows)) + END + after
    )
    print(PAGE)


def names(rows):
    return dict.fromkeys(row["data"] for row in rows)


def part(data, rows):
    rows = [row for row in rows if row["data"] == data]
    stacked = rows[0]["runs"][0]["high_quality"] is None
    quality = "" if stacked else " high quality |"
    lines = [
        f"\n### {data}\n",
        f"| system | modes of {rows[0]['of']} |{quality} KL | seeds | steps |",
    ]
    lines += ["|---|--:|" + ("" if stacked else "--:|") + "--:|---|--:|"]
    for row in rows:
        diverged = sum("diverged" in run for run in row["runs"])
        cells = [row["system"], interval(row["modes"], 1)]
        if not stacked:
            cells.append(percent(row["high_quality"]))
        cells.append(interval(row["kl"], 3) + (f" ({diverged} broke down)" if diverged else ""))
        seeds = [str(run["seed"]) for run in row["runs"]]
        cells += [", ".join(seeds), str(row["steps"])]
        lines.append("| `" + cells[0] + "` | " + " | ".join(cells[1:]) + " |")
    for steps in sorted({row["steps"] for row in rows}):
        name, what = (
            f"modes-{data.partition(':')[0]}-{steps}.png",
            f"Samples on {data} after {steps:,} steps",
        )
        lines.append(f'\n<img src="images/{name}" alt="{what}">')
    lines.append("\n```sh")
    together = {}
    for row in rows:
        seeds = ",".join(str(run["seed"]) for run in row["runs"])
        steps = row["steps"] if row["steps"] != system_config(row["system"], data).steps else None
        together.setdefault((seeds, steps), []).append(row["system"])
    for (seeds, steps), systems in together.items():
        what = f"--data {data} --seeds {seeds} --systems {','.join(systems)}"
        what += f" --steps {steps}" if steps else ""
        lines.append(f"pyfastgan evaluate modes {what}")
    lines.append("```\n")
    return "\n".join(lines)


def interval(found, digits):
    if found is None:
        return "-"
    mean, reach = found
    return f"{mean:.{digits}f}" + (f" +- {reach:.{digits}f}" if reach else "")


def percent(found):
    mean, reach = found
    return f"{mean:.1%}" + (f" +- {reach:.1%}" if reach else "")


if __name__ == "__main__":
    main()
