"""discretized_mix_logistic: calls that the contract tests make and that it refuses, and the rows of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._registry import BadCall, Row, Sample, T


def _levels(x: Tensor) -> Tensor:
    """Of standard normal numbers: values of images, with many at both ends."""
    return ((x * 100 + 127.5).round().clamp(0, 255)) / 127.5 - 1


def _spread(planes: int) -> Callable[[Tensor], Tensor]:
    """Of standard normal numbers: parameters with scales from a bin's width to the whole range."""

    def change(x: Tensor) -> Tensor:
        mixtures = x.size(1) // planes
        x = x.clone()
        kinds = x[:, mixtures:].unflatten(1, (3 if planes == 10 else 1, -1, mixtures))
        kinds[:, :, 0] *= 0.5
        kinds[:, :, 1] = kinds[:, :, 1] * 1.5 - 2
        return x

    return change


def samples() -> tuple[Sample, ...]:
    def images(*shape: int, last: bool = False) -> T:
        return T(shape, channels_last=last, map=_levels)

    return (
        # Whole vectors of pixels and an odd end; several pieces of a sample; each number of channels.
        Sample("colour", (images(2, 3, 4, 4), T((2, 50, 4, 4), map=_spread(10)))),
        Sample("grey, odd end", (images(3, 1, 3, 3), T((3, 12, 3, 3), map=_spread(3)))),
        Sample("one pixel", (images(2, 3), T((2, 10), map=_spread(10)))),
        Sample(
            "channels last, pieces",
            (images(2, 3, 17, 19, last=True), T((2, 20, 17, 19), channels_last=True, map=_spread(10))),
        ),
        Sample("no images", (images(0, 3, 2, 2), T((0, 10, 2, 2)))),
    )  # fmt: skip


def bad_calls() -> tuple[BadCall, ...]:
    x, p = torch.zeros(2, 3, 4, 4), torch.zeros(2, 20, 4, 4)
    return (
        BadCall("two channels", (x[:, :2], p), {}, ValueError, r"x must have shape \(N, 1 or 3, ...\)"),
        BadCall("half a component", (x, p[:, :15]), {}, ValueError, r"params must have shape \(N, 10 M, ...\)"),
        BadCall("no component", (x, p[:, :0]), {}, ValueError, "params must have shape"),
        BadCall("other pixels", (x, p[..., :3]), {}, ValueError, "params must have x's samples and pixels"),
        BadCall("other samples", (x, p[:1]), {}, ValueError, "params must have x's samples"),
        BadCall("bytes", (x.byte(), p), {}, TypeError, "x must be float32"),
        BadCall("another dtype", (x, p.double()), {}, TypeError, "params must have the dtype of x"),
        BadCall("another device", (x, p.to("meta")), {}, ValueError, "params must be on cpu"),
    )  # fmt: skip


def _published(x: Tensor, params: Tensor) -> Tensor:
    """As the code of the paper and its many ports write it."""
    from .discretized_mix_logistic import split_parameters

    logits, means, log_scales, c = split_parameters(params, 3)
    assert c is not None
    value = x[:, :, None]
    m2 = means[:, 1] + c[:, 0] * value[:, 0]
    m3 = means[:, 2] + c[:, 1] * value[:, 0] + c[:, 2] * value[:, 1]
    centered = value - torch.stack((means[:, 0], m2, m3), 1)
    inverse = torch.exp(-log_scales)
    plus, minus, middle = (inverse * (centered + d) for d in (1 / 255, -1 / 255, 0.0))
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2 * F.softplus(middle)
    inner = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density - math.log(127.5))
    upper = torch.where(value > 0.999, -F.softplus(minus), inner)
    mass = torch.where(value < -0.999, plus - F.softplus(plus), upper).sum(1)
    return -torch.logsumexp(mass + torch.log_softmax(logits, 1), 1).flatten(1).sum(1)


def rows() -> Sequence[Row]:
    def make() -> dict[str, Callable[[], Any]]:
        from .discretized_mix_logistic import discretized_mix_logistic

        x = _levels(torch.randn(16, 3, 32, 32))
        params = _spread(10)(torch.randn(16, 100, 32, 32)).requires_grad_()

        def run(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(f(x, params).sum(), params)

        return {"ours": run(discretized_mix_logistic), "eager": run(_published)}

    count = 16 * 1024
    return [
        Row(
            "discretized_mix_logistic fwd+bwd, M=10",
            "16,3,32,32",
            make,
            bytes=4 * count * (3 * 100 + 2 * 3),
        )
    ]
