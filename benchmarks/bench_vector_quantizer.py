"""A training step of vector quantisation, forward with moving averages, against vector-quantize-pytorch."""

import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize

from pyfastgan.nn import VectorQuantizer
from pyfastgan.ops._registry import Row, ops

ROWS, CODES, WIDTH = 8192, 1024, 64


def eager():
    """As the widely copied code writes it, with a one-hot matrix."""
    book = torch.randn(CODES, WIDTH)
    counts, sums = torch.ones(CODES), book.clone()

    @torch.no_grad()
    def step(x):
        distance = x.square().sum(1, keepdim=True) - 2 * x @ book.T + book.square().sum(1)
        index = distance.argmin(1)
        onehot = F.one_hot(index, CODES).type(x.dtype)
        code = F.embedding(index, book)
        loss = 0.25 * F.mse_loss(x, code)
        counts.mul_(0.99).add_(onehot.sum(0), alpha=0.01)
        sums.mul_(0.99).add_(onehot.T @ x, alpha=0.01)
        total = counts.sum()
        smooth = (counts + 1e-5) / (total + CODES * 1e-5) * total
        book.copy_(sums / smooth[:, None])
        share = onehot.mean(0)
        return code, index, loss, torch.exp(-(share * torch.log(share + 1e-10)).sum())

    return step


def contestants():
    x = torch.randn(ROWS, WIDTH)
    ours = VectorQuantizer(CODES, WIDTH)
    peer = VectorQuantize(WIDTH, CODES, decay=0.99, commitment_weight=0.25, rotation_trick=False)
    ours.codebook.copy_(torch.randn(CODES, WIDTH))
    ours.sums.copy_(ours.codebook)
    plain = eager()
    return {
        "ours": lambda: ours(x),
        "eager": lambda: plain(x),
        "vector-quantize-pytorch": lambda: peer(x),
    }


ROW = Row(
    "VectorQuantizer training forward with EMA",
    f"{ROWS} x {CODES} x {WIDTH}",
    contestants,
    bytes=4 * WIDTH * (4 * ROWS + 6 * CODES),
    flops=2 * ROWS * CODES * WIDTH,
)


def test_training_forward(measure, benchmark):
    benchmark.extra_info |= measure(ROW, [ops()["nearest_code"]])["ratios"]
    benchmark(ROW.make()["ours"])
