"""denoise_step against PyTorch's operations and the schedulers of `diffusers`."""

OPS = ("denoise_step",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
