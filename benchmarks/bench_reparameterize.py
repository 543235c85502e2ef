"""A reparameterized sample with its divergence against the operations that it stands for."""

OPS = ("reparameterize",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
