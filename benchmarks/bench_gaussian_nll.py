"""gaussian_nll against torch's own loss and its sum."""

OPS = ("gaussian_nll",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
