"""Convolutions at the image's edge, both ways, and transposed ones of 1 x 1 inputs, against torch's."""

OPS = ("edge_conv", "edge_conv_transpose")


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
