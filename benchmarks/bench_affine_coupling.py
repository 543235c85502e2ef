"""Affine coupling with its log-determinant against the operations that the field writes it in."""

OPS = ("affine_coupling",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
