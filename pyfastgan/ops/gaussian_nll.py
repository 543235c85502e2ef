"""gaussian_nll: -ln of a normal density by its mean and log-variance, summed over each sample, in one pass.

    nll[n] = 1/2 sum over the elements of sample n of (ln 2 pi + logvar + (x - mean)^2 exp(-logvar))

    x              (N, ...) of any layout
    mean, logvar   x's shape and dtype; an expanded tensor will do
    nll            (N,) in nats, float32, or float64 for float64

Differentiable any number of times in all three; from the second order on by torch's own operations.
Half types are computed in float32; under autocast all is float32. Deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import accumulation
from ._per_sample import PerSample
from ._registry import FLOATS, BadCall, Op, Row, Sample, T, register


def _loss(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + logvar + (x - mean).square() * torch.exp(-logvar))


def _slopes(x: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
    scaled = (x - mean) * torch.exp(-logvar)
    return scaled, -scaled, 0.5 * (1 - (x - mean) * scaled)


_op = PerSample("gaussian_nll", ("x", "mean", "logvar"), _loss, _slopes)


def gaussian_nll_reference(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    return _op.reference(x, mean, logvar)


def gaussian_nll(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """The negative log-likelihood of each sample under independent normal variables.

    Args:
        x: (N, ...) float32, float64, bfloat16 or float16, of any layout.
        mean: of x's shape, dtype and device.
        logvar: natural logarithm of the variance, likewise.

    Returns:
        (N,) in nats; float32, or float64 for float64.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or dtype; the message
            names it.
    """
    return _op(x, mean, logvar)


def _rows() -> Sequence[Row]:
    def make() -> dict[str, Callable[[], Any]]:
        x = torch.randn(64, 3, 32, 32)
        mean, logvar = (torch.randn(64, 3, 32, 32, requires_grad=True) for _ in range(2))

        def eager() -> Tensor:
            nll = F.gaussian_nll_loss(mean, x, logvar.exp(), full=True, reduction="none")
            return nll.flatten(1).sum(1)

        def run(f: Callable[[], Tensor]) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(f().sum(), (mean, logvar))

        return {"ours": run(lambda: gaussian_nll(x, mean, logvar)), "eager": run(eager)}

    return [Row("gaussian_nll fwd+bwd", "64,3,32,32", make, bytes=4 * 8 * 64 * 3072)]


register(
    Op(
        name="gaussian_nll",
        function=gaussian_nll,
        reference=gaussian_nll_reference,
        kernels=(_op.forward, _op.backward),
        samples=(
            # An odd end; parts of a sample; samples alone; nothing.
            Sample("images", (T((3, 1, 5, 7)), T((3, 1, 5, 7)), T((3, 1, 5, 7)))),
            Sample("large samples", (T((2, 9001)), T((2, 9001)), T((2, 9001)))),
            Sample("one number each", (T((9,)), T((9,)), T((9,)))),
            Sample("no samples", (T((0, 4)), T((0, 4)), T((0, 4)))),
        ),
        bad_calls=(
            BadCall(
                "another shape",
                (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)),
                {},
                ValueError,
                "logvar must have the shape",
            ),
            BadCall(
                "another dtype",
                (torch.zeros(2), torch.zeros(2).double(), torch.zeros(2)),
                {},
                TypeError,
                "mean must have the dtype",
            ),
            BadCall(
                "integers",
                (torch.zeros(2).long(), torch.zeros(2), torch.zeros(2)),
                {},
                TypeError,
                "x must be float32",
            ),
        ),
        orders=1,  # as the checks see it: more come from torch's operations
        # Squares over small variances, up to a hundred in the samples.
        epsilon={dtype: 64 * torch.finfo(accumulation(dtype)).eps for dtype in FLOATS},
        rows=_rows,
    )
)
