"""The nearest code without distances in memory, against `torch.cdist` and the argmin of its matrix."""

OPS = ("nearest_code",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
