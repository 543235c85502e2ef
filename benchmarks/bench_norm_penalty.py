"""A penalty of gradients and its derivative against the torch operations that they are made of."""

OPS = ("norm_penalty",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
