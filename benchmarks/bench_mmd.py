"""The discrepancy with its gradients, without a matrix of pairs, against `torch.cdist` and autograd."""

OPS = ("mmd",)


def test_row(measure, benchmark, op, row):
    benchmark.extra_info |= measure(row, [op])["ratios"]
    benchmark(row.make()["ours"])
