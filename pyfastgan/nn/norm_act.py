"""A normalisation and an activation as one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.ops import norm_act
from pyfastgan.ops.bias_act import ACTIVATIONS
from pyfastgan.ops.norm_act import NORMS


class NormAct(nn.Module):
    """act(norm(x)) over (N, channels, ...), by `pyfastgan.ops.norm_act`.

    Its state has the keys of the torch layer that it replaces, `nn.BatchNorm2d`,
    `nn.InstanceNorm2d`, `nn.GroupNorm` or (for (N, channels)) `nn.LayerNorm`, and weights move
    between the two in both directions.

    Args:
        norm: batch, instance, group or layer.
        channels: size of dimension 1; at least 1.
        groups: how many, for "group" only; it divides `channels`.
        act: linear, relu, leaky_relu, tanh, sigmoid, silu, gelu or softplus.
        slope: leaky_relu's.
        eps: added to the variance.
        momentum: share of a batch's statistics in the running ones; None, for batch norm only, for
            their average over all batches.
        affine: whether there are weight (ones at first) and bias (zeros); by default all but
            instance norm have them, as in torch.
        track_running_stats: whether batch and instance norm remember statistics for evaluation; by
            default batch norm does, as in torch.

    Errors beside those of a wrong `norm`, `act`, `channels` or `groups` are the op's, raised when it
    is called.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        norm: str,
        channels: int,
        *,
        groups: int | None = None,
        act: str = "leaky_relu",
        slope: float = 0.2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool | None = None,
        track_running_stats: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        check_choice("act", act, ACTIVATIONS)
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if norm == "group":
            if groups is None or groups < 1 or channels % groups:
                raise ValueError(f"groups must divide channels={channels}, got {groups}")
        elif groups is not None:
            raise ValueError(f"groups belongs to norm='group', got groups={groups} with {norm!r}")
        if track_running_stats and norm in ("group", "layer"):
            raise ValueError(f"track_running_stats belongs to batch and instance norm, not {norm}")
        if momentum is None and norm != "batch":
            raise ValueError(f"momentum=None belongs to batch norm, got norm={norm!r}")
        self.norm, self.channels, self.groups, self.act, self.slope = (
            norm,
            channels,
            groups,
            act,
            slope,
        )
        self.eps, self.momentum = eps, momentum
        of = {"device": device, "dtype": dtype}
        if affine if affine is not None else norm != "instance":
            self.weight = nn.Parameter(torch.ones(channels, **of))  # type: ignore[arg-type]
            self.bias = nn.Parameter(torch.zeros(channels, **of))  # type: ignore[arg-type]
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        track = norm == "batch" if track_running_stats is None else track_running_stats
        count = torch.tensor(0, dtype=torch.long, device=device)
        self.register_buffer("running_mean", torch.zeros(channels, **of) if track else None)  # type: ignore[arg-type]
        self.register_buffer("running_var", torch.ones(channels, **of) if track else None)  # type: ignore[arg-type]
        self.register_buffer("num_batches_tracked", count if track else None)

    def forward(self, x: Tensor) -> Tensor:
        training = self.training or self.running_mean is None
        momentum = 0.0 if self.momentum is None else self.momentum
        # torch's instance norm has this counter too, and does not count.
        if training and self.num_batches_tracked is not None and self.norm == "batch":
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        return norm_act(
            x,
            self.weight,
            self.bias,
            norm=self.norm,
            groups=self.groups,
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=training,
            momentum=momentum,
            eps=self.eps,
            act=self.act,
            slope=self.slope,
        )

    def extra_repr(self) -> str:
        groups = "" if self.groups is None else f", groups={self.groups}"
        slope = f", slope={self.slope}" if self.act == "leaky_relu" else ""
        return f"{self.norm!r}, {self.channels}{groups}, act={self.act!r}{slope}, eps={self.eps}"
