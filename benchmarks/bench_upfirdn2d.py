"""StyleGAN2's three uses of its filter, against depthwise convolutions of torch."""

OPS = ("upfirdn2d",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
