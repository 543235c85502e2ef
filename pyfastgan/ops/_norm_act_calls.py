"""norm_act: the calls that the contract tests make, those that it refuses, and the rows of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._norm_act_formulas import NORMS
from ._registry import BadCall, Row, Sample, T


def samples() -> tuple[Sample, ...]:
    def sample(label: str, shape: tuple[int, ...], last: bool = False, **kwargs: Any) -> Sample:
        weight, bias = T((shape[1],), map=lambda t: 1 + 0.2 * t), T((shape[1],))
        return Sample(label, (T(shape, channels_last=last), weight, bias), kwargs)

    running: dict[str, Any] = {
        "running_mean": T((5,)),
        "running_var": T((5,), map=lambda t: 0.5 + t.square()),
        "training": False,
    }
    return (
        sample("batch", (4, 3, 3, 3)),
        sample("batch, channels last", (3, 20, 5, 4), True, act="silu"),
        sample("batch, running", (3, 5, 2, 3), act="gelu", **running),
        sample("batch, running, channels last", (3, 5, 3, 7), True, act="relu", **running),
        sample("instance", (2, 3, 4, 5), norm="instance", act="tanh"),
        sample("group", (2, 6, 3, 3), norm="group", groups=2, act="softplus"),
        sample("group, channels last", (3, 24, 2, 3), True, norm="group", groups=3),
        sample("layer of points", (5, 19), norm="layer", act="sigmoid"),
        Sample("no weight", (T((2, 4, 33), scale=3.0),), {"norm": "layer", "act": "linear"}),
        sample("no samples", (0, 4, 2, 2)),
        sample("large", (5, 3, 80, 70), act="relu"),
        sample("large, channels last", (5, 3, 80, 70), True),
    )


def bad_calls() -> tuple[BadCall, ...]:
    x, w = torch.zeros(2, 6, 4), torch.zeros(6)
    running = {"running_mean": w, "running_var": w}
    return (
        BadCall("integers", (torch.zeros(2, 3, dtype=torch.int64),), {}, TypeError, "x must be float32"),
        BadCall("no channels", (torch.zeros(3),), {}, ValueError, r"x must have shape \(N, C\)"),
        BadCall("weight of another width", (x, torch.zeros(4)), {}, ValueError, r"weight must have shape \(6,\)"),
        BadCall("bias of another width", (x, w, torch.zeros(6, 1)), {}, ValueError, r"bias must have shape \(6,\)"),
        BadCall("mixed dtypes", (x, w.double()), {}, TypeError, "weight must have the dtype of x"),
        BadCall("mixed devices", (x, w.to("meta")), {}, ValueError, "weight must be on cpu"),
        BadCall("unknown norm", (x,), {"norm": "spectral"}, ValueError, "norm must be one of"),
        BadCall("unknown activation", (x,), {"act": "leakyrelu"}, ValueError, "did you mean 'leaky_relu'"),
        BadCall("groups that do not divide", (x,), {"norm": "group", "groups": 4}, ValueError,
                "groups must be a positive integer that divides the 6 channels"),
        BadCall("no groups", (x,), {"norm": "group"}, ValueError, "groups must be a positive integer"),
        BadCall("groups of no group norm", (x,), {"groups": 2}, ValueError, "groups belongs to norm='group'"),
        BadCall("one running statistic", (x,), {"running_mean": w}, ValueError, "running_var is missing"),
        BadCall("running statistics of layer norm", (x,), {"norm": "layer", **running}, ValueError,
                "running_mean belongs to"),
        BadCall("running statistics of another width", (x,), {"running_mean": w, "running_var": torch.ones(5)},
                ValueError, r"running_var must have shape \(6,\)"),
        BadCall("expanded running statistics", (x,), {"running_mean": w, "running_var": w[:1].expand(6)},
                ValueError, "running_var is written to"),
        BadCall("no running statistics", (x,), {"training": False}, ValueError, "running_mean and running_var"),
        BadCall("one value a channel", (torch.zeros(1, 6),), {}, ValueError, "x must have more than one value"),
        BadCall("one value an instance", (torch.zeros(4, 6, 1),), {"norm": "instance"}, ValueError,
                "x must have more than one value"),
        BadCall("momentum", (x,), {"momentum": 1.5}, ValueError, "momentum must be between 0 and 1"),
        BadCall("negative eps", (x,), {"eps": -1.0}, ValueError, "eps must be finite and at least 0"),
        BadCall("negative slope", (x,), {"slope": -1.0}, ValueError, "slope must be finite and at least 0"),
    )  # fmt: skip


_EAGER_ACT: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "relu": F.relu,
    "silu": F.silu,
}
_EAGER_NORM: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
    "instance": lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    "group": lambda x, w, b: F.group_norm(x, 8, w, b),
    "layer": lambda x, w, b: F.group_norm(x, 1, w, b),
}


def _row(norm: str, act: str, shape: tuple[int, ...], layout: str, order: int) -> Row:
    def make() -> dict[str, Callable[[], Any]]:
        from .norm_act import norm_act

        x, dy, ddx = (torch.randn(shape) for _ in range(3))
        w, b = torch.randn(shape[1]), torch.randn(shape[1])
        if layout == "channels last":
            x, dy, ddx = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, ddx))
        if order:
            for t in (x, w, b):
                t.requires_grad_()
        if order == 2:
            dy.requires_grad_()

        def run(f: Callable[[], Tensor]) -> Any:
            if order == 0:
                return f()
            if order == 1:
                return torch.autograd.grad(f(), (x, w, b), dy)
            (dx,) = torch.autograd.grad(f(), x, dy, create_graph=True)
            return torch.autograd.grad(dx, (dy, x, w), ddx)

        groups = 8 if norm == "group" else None
        return {
            "ours": lambda: run(lambda: norm_act(x, w, b, norm=norm, groups=groups, act=act)),
            "eager": lambda: run(lambda: _EAGER_ACT[act](_EAGER_NORM[norm](x, w, b))),
        }

    name = ("fwd", "fwd+bwd", "fwd+bwd+double bwd")[order]
    moves = (2, 2 + 3, 2 + 3 + 5)[order]
    return Row(
        f"norm_act {norm} {act} {name}",
        f"{','.join(map(str, shape))} {layout}",
        make,
        bytes=moves * 4 * math.prod(shape),
    )


def rows() -> Sequence[Row]:
    image = (64, 64, 32, 32)
    return [
        *(_row(norm, "leaky_relu", image, "contiguous", 2) for norm in NORMS),
        _row("batch", "leaky_relu", image, "channels last", 2),
        *(
            _row("batch", "leaky_relu", image, layout, 1)
            for layout in ("contiguous", "channels last")
        ),
        _row("batch", "relu", image, "contiguous", 1),
        _row("group", "silu", image, "contiguous", 1),
        _row("instance", "relu", image, "contiguous", 1),
        _row("batch", "relu", (64, 32, 8, 8), "contiguous", 1),
    ]
