"""bias_act: the calls that the contract tests make, those that it refuses, and the rows of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._bias_act_formulas import ACTIVATIONS, _add_bias
from ._registry import BadCall, Row, Sample, T


def samples() -> tuple[Sample, ...]:
    samples = []
    for act in ACTIVATIONS:
        samples += [
            Sample(f"{act}", (T((2, 5, 4, 6)), T((5,)), act)),
            Sample(
                f"{act}, channels last, gain, clamp",
                (T((2, 3, 5, 7), channels_last=True), T((3,)), act),
                {"slope": 0.1, "gain": -1.5, "clamp": 0.8},
            ),
        ]
    return (
        *samples,
        Sample("wide inputs", (T((64, 33), scale=20.0), T((33,)), "gelu")),
        Sample("points", (T((7, 17)), T((17,)), "silu"), {"gain": 2**0.5}),
        Sample("no bias, any shape", (T((3, 1, 2)), None, "tanh")),
        Sample("scalar", (T(()),)),
        Sample("one channel", (T((6, 1, 3, 3)), T((1,)), "relu")),
        Sample("many channels last", (T((2, 40, 3, 3), channels_last=True), T((40,)), "softplus")),
        Sample("volume", (T((1, 2, 3, 4, 5)), T((2,)), "sigmoid")),
        Sample("no samples", (T((0, 4, 2, 2)), T((4,)))),
        Sample("no channels", (T((2, 0, 3)), T((0,)))),
        Sample("a mask, channels last", (T((3, 24, 3, 2), channels_last=True), T((24,)), "relu")),
        Sample("a mask, negative gain", (T((2, 3, 4, 4)), T((3,))), {"gain": -2.0}),
        Sample("a mask, odd end", (T((3, 5, 7)), None, "relu")),
        Sample("a mask, rows without channels, odd end", (T((3, 7, 11)), None, "relu")),
        # Rows of 128 elements and more have a loop of their own.
        Sample("long rows, odd end", (T((3, 4, 13, 11)), T((4,)), "silu")),
        Sample("long rows, a mask, odd end", (T((2, 3, 8, 17)), T((3,)))),
        # Outputs of 12 MiB and more are stored past the caches.
        Sample("large", (T((2, 1100, 1600)), None, "leaky_relu")),
        Sample("zero slope", (T((3, 4, 5)), T((4,))), {"slope": 0.0, "gain": 0.0}),
    )


def bad_calls() -> tuple[BadCall, ...]:
    x, b = torch.zeros(2, 3, 4), torch.zeros(3)
    return (
        BadCall("bias of another width", (x, torch.zeros(4)), {}, ValueError, r"bias must have shape \(3,\)"),
        BadCall("bias with two dimensions", (x, torch.zeros(3, 1)), {}, ValueError, "bias must have shape"),
        BadCall("no channels for a bias", (torch.zeros(3), b), {}, ValueError, "x must have a channel dimension"),
        BadCall("integers", (torch.zeros(2, 3, dtype=torch.int64),), {}, TypeError, "x must be float32"),
        BadCall("integer bias", (x, torch.zeros(3, dtype=torch.int32)), {}, TypeError, "bias must be float32"),
        BadCall("not a tensor", ([1.0, 2.0],), {}, TypeError, "x must be a tensor, got list"),
        BadCall("mixed dtypes", (x, b.double()), {}, TypeError, "bias must have the dtype of x"),
        BadCall("mixed devices", (x, b.to("meta")), {}, ValueError, "bias must be on cpu"),
        BadCall("unknown activation", (x, b, "leakyrelu"), {}, ValueError, "did you mean 'leaky_relu'"),
        BadCall("negative slope", (x, b), {"slope": -0.1}, ValueError, "slope must be finite and at least 0"),
        BadCall("infinite slope", (x, b), {"slope": math.inf}, ValueError, "slope must be finite"),
        BadCall("NaN gain", (x, b), {"gain": math.nan}, ValueError, "gain must be finite"),
        BadCall("zero clamp", (x, b), {"clamp": 0.0}, ValueError, "clamp must be finite and positive"),
    )  # fmt: skip


def _row(act: str, shape: tuple[int, ...], layout: str, order: int) -> Row:
    eager_act: dict[str, Callable[[Tensor], Tensor]] = {
        "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
        "relu": F.relu,
        "silu": F.silu,
        "gelu": F.gelu,
    }

    def make() -> dict[str, Callable[[], Any]]:
        from .bias_act import bias_act

        x, b = torch.randn(shape), torch.randn(shape[1])
        dy, ddx = torch.randn(shape), torch.randn(shape)
        if layout == "channels last":
            x, dy, ddx = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, ddx))
        if order:
            x.requires_grad_()
            b.requires_grad_()
        if order == 2:
            dy.requires_grad_()

        def run(f: Callable[[], Tensor]) -> Any:
            if order == 0:
                return f()
            if order == 1:
                return torch.autograd.grad(f(), (x, b), dy)
            dx, db = torch.autograd.grad(f(), (x, b), dy, create_graph=True)
            inputs = (dy,) if ACTIVATIONS[act].piecewise_linear else (dy, x, b)
            return torch.autograd.grad(dx, inputs, ddx)

        return {
            "ours": lambda: run(lambda: bias_act(x, b, act)),
            "eager": lambda: run(lambda: eager_act[act](_add_bias(x, b))),
        }

    smooth = not ACTIVATIONS[act].piecewise_linear
    moves = (2, 2 + 3, 2 + 3 + (5 if smooth else 3))[order]
    name = ("fwd", "fwd+bwd", "fwd+bwd+double bwd")[order]
    return Row(
        f"bias_act {act} {name}",
        f"{','.join(map(str, shape))} {layout}",
        make,
        bytes=moves * 4 * math.prod(shape),
    )


def rows() -> Sequence[Row]:
    image = (64, 64, 32, 32)
    return [
        *(_row("leaky_relu", image, "contiguous", order) for order in (0, 1, 2)),
        _row("leaky_relu", image, "channels last", 1),
        *(_row("silu", image, "contiguous", order) for order in (0, 1, 2)),
        _row("relu", (64, 32, 8, 8), "contiguous", 1),
    ]
