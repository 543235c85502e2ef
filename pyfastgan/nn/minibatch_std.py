"""The spread of a batch as a further channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS = 1e-8


class MinibatchStd(nn.Module):
    """Maps (N, C, H, W) to (N, C + features, H, W): how much the samples of a group differ.

    The standard deviation over a group's samples, averaged over all pixels and over the channels of
    each of `features` equal parts, in every pixel (Karras et al. 2018, "Progressive growing of GANs",
    section 3). Samples i, i + N / g, i + 2 N / g, ... are a group of g.

    Args:
        group_size: Samples in a group, g; of a batch that it does not divide, the largest divisor of N
            below it.
        features: Channels that are added; they divide C.

    Raises `ValueError` for other features, and for what is no batch of maps.
    """

    def __init__(self, group_size: int = 4, features: int = 1) -> None:
        super().__init__()
        for name, value in (("group_size", group_size), ("features", features)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.group_size, self.features = group_size, features

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] % self.features:
            raise ValueError(
                f"x must be (N, C, H, W) with C a multiple of features={self.features},"
                f" got {tuple(x.shape)}"
            )
        count, _, height, width = x.shape
        if count == 0:
            return torch.cat([x, x.new_zeros(0, self.features, height, width)], 1)
        group = next(g for g in range(min(self.group_size, count), 0, -1) if count % g == 0)
        grouped = x.reshape(group, count // group, self.features, -1)
        # Not torch.var, which takes ten times as long along the first dimension.
        squares = (grouped - grouped.mean(0)).square().mean(0)
        spread = squares.add(_EPS).sqrt().mean(2)  # (N / g, features)
        shown = spread.repeat(group, 1)[..., None, None].expand(-1, -1, height, width)
        return torch.cat([x, shown], 1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, features={self.features}"
