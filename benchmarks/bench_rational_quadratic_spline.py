"""Rational-quadratic splines against their dense form and the libraries' own functions."""

OPS = ("rational_quadratic_spline",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
