"""diffuse against torch's noise and arithmetic."""

OPS = ("diffuse",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
