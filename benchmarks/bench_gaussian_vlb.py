"""gaussian_vlb, forward and backward, against the field's mathematics in plain PyTorch."""

OPS = ("gaussian_vlb",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
