"""The tables of rows that stand in README and in the pages, written by report.py between two marks.

README's holds the rows below, winners and losers. A page says itself which rows it shows: those whose name begins with
what stands in its mark.
"""

import re

from pyfastgan.bench import duration

BEGIN, END = "<!-- speed: benchmarks/report.py -->", "<!-- end of speed -->"
TRACED = (
    "\\* compiled with torch's experimental `trace_autograd_ops`, which makes compiled gradients faster; without it "
    "torch refuses to\ncompile a double backward."
)
MARKED = re.compile(r"(<!-- rows: (.+?) -->\n).*?(<!-- end of rows -->)", re.DOTALL)
# What README calls a row, and its name and shape in the results.
ROWS = [
    (
        "`rational_quadratic_spline`, forward, 8192,64",
        "rational_quadratic_spline fwd, K=8",
        "8192,64",
    ),
    (
        "`mmd` with gradients, 4096 x 4096 x 64, five bandwidths",
        "mmd fwd+bwd",
        "4096 x 4096 x 64, 5 bandwidths",
    ),
    (
        "`norm_act` layer norm with double backward, 64,64,32,32",
        "norm_act layer leaky_relu fwd+bwd+double bwd",
        "64,64,32,32 contiguous",
    ),
    ("`random_normal`, 4 million", "random_normal", "4 million"),
    ("`diffuse` with noise, 16,3,64,64", "diffuse with noise", "16,3,64,64"),
    (
        "`discretized_mix_logistic`, forward + backward, 16,3,32,32",
        "discretized_mix_logistic fwd+bwd, M=10",
        "16,3,32,32",
    ),
    ("`nearest_code`, 16384 x 512 x 64", "nearest_code", "16384 x 512 x 64"),
    (
        "`bias_act` leaky ReLU, forward, 64,64,32,32",
        "bias_act leaky_relu fwd",
        "64,64,32,32 contiguous",
    ),
    (
        "an nflows spline flow's training step after `pf.accelerate`",
        "accelerate: nflows NSF step",
        "10 layers, 512 x 64, K=8",
    ),
    (
        "a critic's step, relativistic with R1 and R2, 32,3,32,32",
        "critic step, relativistic, r1r2",
        "32,3,32,32 contiguous",
    ),
    (
        "Glow's training step, 32 px",
        "Glow training step",
        "L=3, K=8, hidden 64, 32 px, batch 16",
    ),
    (
        "FrEIA's `AllInOneBlock`s: a training step after `pf.accelerate`",
        "accelerate: FrEIA AllInOneBlock step",
        "8 blocks, 512 x 64",
    ),
    (
        "`upfirdn2d` with gradients, twice as large, 16,64,32,32 channels-last",
        "upfirdn2d fwd+bwd, enlarge",
        "16,64,32,32 channels-last",
    ),
    (
        "`bernoulli_nll`, 128,64, which torch's own operations serve",
        "bernoulli_nll fwd+bwd",
        "128,64",
    ),
]


def table(rows):
    """Markdown of the rows above; one that was not measured is left out."""
    found = {(row["name"], row["shape"]): row for row in rows if "ratios" in row}
    lines = ["| row | ours | PyTorch eager | `torch.compile` |", "|---|--:|--:|--:|"]
    for label, *key in ROWS:
        row = found.get(tuple(key))
        if row is None or not row["ratios"]:
            continue
        ratios = row["ratios"]
        eager = times(ratios.get("eager")) + " as long" * (len(lines) == 2)
        if "nflows" in ratios:
            eager += f" (nflows {times(ratios['nflows'])})"
        # The second compiles gradients in another way, which torch calls experimental.
        traced = "compile" not in ratios and "trace_autograd_ops" in ratios
        compiled = times(ratios.get("trace_autograd_ops" if traced else "compile")) + " *" * traced
        ours = duration(row["contestants"]["ours"]["seconds"])
        lines.append(f"| {label} | {ours} | {eager} | {compiled} |")
    return "\n".join(lines)


def times(ratio):
    if ratio is None:
        return "-"
    text = f"{ratio:.{0 if ratio >= 10 else 1 if ratio >= 2 else 2}f}x"
    return f"**{text}**" if ratio < 1 else text


def rows_of(names, rows):
    """Markdown of the rows whose name begins with one of `names`, apart by commas: our time, others' over ours."""
    starts = tuple(name.strip() for name in names.split(","))
    found = [row for row in rows if row["name"].startswith(starts) and row.get("ratios")]
    others = list(dict.fromkeys(k for row in found for k in row["ratios"] if k != "limit"))
    lines = [
        f"| row | shape | ours | {' | '.join(others)} |",
        "|---|---|" + "--:|" * (1 + len(others)),
    ]
    for row in found:
        ours = duration(row["contestants"]["ours"]["seconds"])
        cells = [row["name"].removeprefix("accelerate: "), row["shape"], ours]
        cells += [times(row["ratios"].get(name)) for name in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(text, rows):
    """The text of README or a page with its tables made of `rows`."""
    if BEGIN in text:
        before, rest = text.split(BEGIN)
        made = table(rows)
        made += f"\n\n{TRACED}" if "x * |" in made else ""
        text = f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"
    return MARKED.sub(lambda m: f"{m[1]}\n{rows_of(m[2], rows)}\n\n{m[3]}", text)
