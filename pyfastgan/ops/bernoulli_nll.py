"""bernoulli_nll: -ln of a Bernoulli mass by its logit, summed over each sample, in one pass.

    nll[n] = sum over the elements of sample n of ln(1 + exp(logit)) - x logit, in nats

    x        (N, ...) numbers in [0, 1], usually 0 or 1, of any layout
    logits   x's shape and dtype
    nll      (N,), float32, or float64 for float64

Differentiable any number of times in both; from the second order on by torch's own operations.
Half types are computed in float32; under autocast all is float32. Deterministic. On a CPU up to 2^14
elements with a gradient to come are left to torch's own operations unless a backend is asked for by
name: there an autograd function in Python costs more than a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import is_autocast_enabled as _autocast
from torch import is_grad_enabled as _recorded
from torch.compiler import is_compiling as _is_compiling

from ._backends import choice as _choice
from ._common import accumulation, forward_mode
from ._per_sample import PerSample
from ._registry import FLOATS, BadCall, Op, Row, Sample, T, register

# On a CPU with a gradient to come, torch's own operations are sooner back up to this many elements.
_SMALL = 2**14


def _plain(x: object, logits: object) -> Tensor | None:
    """By torch's own operations what they are sooner back with, where the choice is ours. The look at the arguments
    costs a few percent of the op, so that it is one; None for all else, calls with a mistake among them."""
    if (
        type(x) is not Tensor
        or type(logits) is not Tensor
        or not (logits.requires_grad or x.requires_grad)
        or _choice.name != "auto"
        or not (x.is_cpu and logits.is_cpu)
    ):
        return None
    dtype, shape = x.dtype, x.shape
    dims = len(shape)
    if (
        logits.dtype is not dtype
        or (dtype is not torch.float32 and dtype is not torch.float64)
        or logits.shape != shape
        or dims == 0
        or x.numel() > _SMALL
        or not _recorded()
        or _autocast("cpu")
        or _is_compiling()
        or forward_mode()
    ):
        return None
    # The function in torch.nn.functional only checks once more.
    loss = torch.binary_cross_entropy_with_logits(logits, x, None, None, 0)
    if dims == 1:
        return loss
    return (loss if dims == 2 else loss.flatten(1)).sum(1)


_op = PerSample(
    "bernoulli_nll",
    ("x", "logits"),
    lambda x, logits: logits.clamp(min=0) - x * logits + torch.log1p(torch.exp(-logits.abs())),
    lambda x, logits: (-logits, torch.sigmoid(logits) - x),
)


def bernoulli_nll_reference(x: Tensor, logits: Tensor) -> Tensor:
    """The definition in plain PyTorch, differentiable by autograd any number of times."""
    dtype = accumulation(x.dtype)
    x, logits = x.to(dtype), logits.to(dtype)
    return (-F.logsigmoid(-logits) - x * logits)[..., None].flatten(1).sum(1)


def bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """The negative log-likelihood of each sample under independent Bernoulli variables.

    Args:
        x: (N, ...) float32, float64, bfloat16 or float16, in [0, 1], of any layout.
        logits: of x's shape, dtype and device.

    Returns:
        (N,) in nats; float32, or float64 for float64.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or dtype; the message
            names it.
    """
    loss = _plain(x, logits)
    return _op(x, logits) if loss is None else loss


def _binary(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _rows() -> Sequence[Row]:
    def make(size: int) -> dict[str, Callable[[], Any]]:
        x = _binary(torch.randn(128, size))
        logits = torch.randn(128, size, requires_grad=True)

        def eager() -> Tensor:
            return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)

        def run(f: Callable[[], Tensor]) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(f().sum(), logits)

        return {"ours": run(lambda: bernoulli_nll(x, logits)), "eager": run(eager)}

    return [
        Row(
            "bernoulli_nll fwd+bwd",
            f"128,{size}",
            lambda size=size: make(size),  # type: ignore[misc]
            bytes=4 * 5 * 128 * size,
        )
        for size in (64, 784)
    ]


register(
    Op(
        name="bernoulli_nll",
        function=bernoulli_nll,
        reference=bernoulli_nll_reference,
        kernels=(_op.forward, _op.backward),
        samples=(
            # An odd end, large logits; parts of a sample; samples alone; nothing.
            Sample("images", (T((3, 1, 5, 7), map=_binary), T((3, 1, 5, 7), scale=30.0))),
            Sample("large samples", (T((2, 9001), map=torch.sigmoid), T((2, 9001)))),
            Sample("one number each", (T((9,), map=_binary), T((9,)))),
            Sample("no samples", (T((0, 4)), T((0, 4)))),
        ),
        bad_calls=(
            BadCall(
                "another shape",
                (torch.zeros(2, 3), torch.zeros(2, 4)),
                {},
                ValueError,
                "logits must have the shape",
            ),
            BadCall(
                "another dtype",
                (torch.zeros(2), torch.zeros(2).double()),
                {},
                TypeError,
                "logits must have the dtype",
            ),
            BadCall(
                "bytes", (torch.zeros(2).byte(), torch.zeros(2)), {}, TypeError, "x must be float32"
            ),
            BadCall(
                "a scalar",
                (torch.zeros(()), torch.zeros(())),
                {},
                ValueError,
                "x must have a dimension",
            ),
        ),
        orders=1,  # as the checks see it: more come from torch's operations
        epsilon={dtype: 16 * torch.finfo(accumulation(dtype)).eps for dtype in FLOATS},
        rows=_rows,
    )
)
