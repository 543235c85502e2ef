"""The mixture of discretised logistics against the published code's operations."""

OPS = ("discretized_mix_logistic",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
