"""An affine coupling of some channels while the others pass, forward and backward, against the operations that FrEIA's
AllInOneBlock and Glow's steps write it in: halves cut out and put together again, and for FrEIA a scale, an offset and
a permutation behind it."""

import math

import pytest
import torch
import torch.nn.functional as F

from pyfastgan.ops._couple_channels import Behind, couple_channels
from pyfastgan.ops._registry import Row, ops


def glow(x, out):
    a, b = x.chunk(2, 1)
    log_s, t = out.chunk(2, 1)
    s = torch.sigmoid(log_s + 2)
    return torch.cat((a, (b + t) * s), 1), s.log().flatten(1).sum(1)


def freia(x, out, scale, offset, matrix):
    a, b = x.chunk(2, 1)
    out = 0.1 * out
    log = 2 * torch.tanh(out[:, : b.size(1)])
    y = torch.cat((a, b * torch.exp(log) + out[:, b.size(1) :]), 1)
    y = F.linear(y * scale + offset, matrix)
    return y, log.sum(1) + scale.log().sum()


def contestants(shape, behind):
    x, out, dy = torch.randn(3, *shape)
    inputs, dlogdet = (x.requires_grad_(), out.requires_grad_()), torch.randn(len(x))
    if not behind:

        def ours(x, out):
            return couple_channels(x, out, scale="sigmoid", shift_first=True)

        eager = glow
    else:
        order = torch.randperm(shape[1])
        scale, offset = torch.rand(shape[1]) + 0.5, torch.zeros(shape[1])
        inputs += (scale.requires_grad_(), offset.requires_grad_())
        matrix, place = torch.eye(shape[1])[order], order.argsort()

        def ours(x, out, scale, offset):
            after = Behind(scale, offset, order, place)
            return couple_channels(x, out, scale="clamped_tanh", factor=0.1, behind=after)

        def eager(x, out, scale, offset):
            return freia(x, out, scale, offset, matrix)

    return {
        name: lambda call=call: torch.autograd.grad(call(*inputs), inputs, (dy, dlogdet))
        for name, call in (("ours", ours), ("eager", eager))
    }


@pytest.mark.parametrize(
    ("shape", "behind"), [((16, 12, 16, 16), False), ((512, 64), True)], ids=["glow", "freia"]
)
def test_step(measure, benchmark, shape, behind):
    row = Row(
        "couple_channels fwd+bwd, " + ("FrEIA's block" if behind else "Glow's step"),
        ",".join(map(str, shape)),
        lambda: contestants(shape, behind),
        # Half of the channels: x, out and y; then dy, x, out, dx and dout.
        bytes=8 * 4 * math.prod(shape),
    )
    result = measure(row, [ops()["affine_coupling"]])
    benchmark.extra_info |= result["ratios"]
    benchmark(row.make()["ours"])
