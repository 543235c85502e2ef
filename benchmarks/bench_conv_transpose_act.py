"""A generator's last layer against the two torch operations."""

OPS = ("conv_transpose_act",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
