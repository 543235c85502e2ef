"""The pictures of docs/benchmarks.md, which report.py draws from the suites' results."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"ours": "#1b6ca8", "eager": "#d1495b", "compile": "#edae49", "limit": "#7a7a7a"}
OTHERS = ["#5b8e7d", "#8f6bb0", "#c08552", "#4f9d9d", "#b5546c"]
# Reproducible files: no date, and the same names of the parts every time.
plt.rcParams |= {"svg.hashsalt": "pyfastgan", "svg.fonttype": "none", "font.size": 9}


def draw_speedups(rows, path):
    """Bars of everybody's time over ours, on a logarithmic axis that starts at 1."""
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    for shift, name in ((-0.19, "eager"), (0.19, "compile")):
        ratios = [row["ratios"].get(name) for row in rows]
        places = [k + shift for k, ratio in enumerate(ratios) if ratio]
        lengths = [ratio - 1 for ratio in ratios if ratio]
        axes.barh(places, lengths, 0.36, left=1, color=COLOURS[name], label=f"over {name}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}x")
    save_bars(
        figure,
        axes,
        [f"{row['name']}\n{row['shape']}" for row in rows],
        "speed-up (1x = as fast)",
        path,
    )


def draw_limits(rows, path):
    """Bars of our time and eager's over the physical limit, on a logarithmic axis."""
    rows = [row for row in rows if row["limit"]]
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.3 * len(rows)), layout="constrained")
    for shift, name in ((0.19, "ours"), (-0.19, "eager")):
        found = [row["contestants"].get(name, {}).get("seconds") for row in rows]
        places = [k + shift for k, seconds in enumerate(found) if seconds]
        ratios = [s / row["limit"] for s, row in zip(found, rows) if s]
        axes.barh(places, [r - 1 for r in ratios], 0.36, left=1, color=COLOURS[name], label=name)
    axes.axvline(1, color=COLOURS["limit"], linewidth=1.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}x")
    save_bars(
        figure,
        axes,
        [f"{row['name']}, {row['shape']}" for row in rows],
        "time over the limit (1x = the limit)",
        path,
    )


def draw_groups(rows, values, path, label, names):
    """Bars of several contestants, a group a row, on a logarithmic axis."""
    names = [name for name in names if any(values(row, name) for row in rows)]
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        found = [(place, values(row, name)) for place, row in enumerate(rows) if values(row, name)]
        places = [place + (k - (len(names) - 1) / 2) * width for place, _ in found]
        colour = COLOURS.get(name, OTHERS[k % len(OTHERS)])
        axes.barh(places, [value for _, value in found], 0.9 * width, color=colour, label=name)
    axes.set_xscale("log")
    save_bars(figure, axes, [f"{row['name']}\n{row['shape']}" for row in rows], label, path)


def timed(key):
    return lambda row, name: row["contestants"].get(name, {}).get(key)


def draw_first_calls(rows, path):
    names = ("ours", "eager", "compile")
    draw_groups(rows, timed("first_call"), path, "seconds of the first call", names)


def draw_times(rows, path):
    names = dict.fromkeys(name for row in rows for name in row["contestants"])
    draw_groups(rows, timed("seconds"), path, "seconds of a step", names)


def draw_memory(rows, path):
    names = dict.fromkeys(name for row in rows for name in row["memory"])
    values = lambda row, name: row["memory"].get(name, 0) / 2**20  # noqa: E731
    draw_groups(rows, values, path, "MiB at the peak of one call", names)


def draw_sweeps(sweeps, path):
    """Nanoseconds an element over the number of elements; solid for one thread, dashed for more."""
    figure, every = plt.subplots(
        1, len(sweeps), figsize=(4.2 * len(sweeps) + 1.4, 3.6), squeeze=False, layout="constrained"
    )
    for axes, (name, rows) in zip(every[0], sweeps.items()):
        for threads in sorted({row["threads"] for row in rows}):
            own = sorted((r for r in rows if r["threads"] == threads), key=lambda r: r["elements"])
            sizes = [row["elements"] for row in own]
            times = {n: [r["contestants"][n]["seconds"] for r in own] for n in ("ours", "eager")}
            times["limit"] = [row["limit"] for row in own]
            for label, values in times.items():
                axes.plot(
                    sizes,
                    [1e9 * value / size for value, size in zip(values, sizes)],
                    "-" if threads == 1 else "--",
                    color=COLOURS[label],
                    label=f"{label}, {threads} thread{'s' * (threads > 1)}",
                )
        axes.set(title=name, xlabel="elements", xscale="log", yscale="log")
    every[0][0].set_ylabel("nanoseconds an element")
    figure.legend(*every[0][-1].get_legend_handles_labels(), loc="outside right upper")
    save(figure, path)


def save_bars(figure, axes, names, label, path):
    """Saves bars that are named from the top."""
    axes.margins(y=0.02)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.legend()
    save(figure, path)


def save(figure, path):
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    # matplotlib ends some lines in blanks.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
