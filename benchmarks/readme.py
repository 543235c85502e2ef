"""The speed table of README: some rows of the results, winners and losers, written by report.py between two marks."""

from pyfastgan.bench import duration

BEGIN, END = "<!-- speed: benchmarks/report.py -->", "<!-- end of speed -->"
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
    ("`bernoulli_nll`, 128,64, backend asked for by name", "bernoulli_nll fwd+bwd", "128,64"),
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
    text = f"{ratio:.{0 if ratio >= 10 else 1 if ratio >= 1 else 2}f}x"
    return f"**{text}**" if ratio < 1 else text


def write(path, rows):
    """Puts the table between the marks of a file, if it has them."""
    text = path.read_text()
    if BEGIN in text:
        before, rest = text.split(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}")
