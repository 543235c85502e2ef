"""The levels that a sampler goes through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """The levels that a sampler goes through, from the most noise to the least, and where it ends."""

    path: str
    time: Tensor  # (steps + 1,) what the network is told, and so on
    alpha_squared: Tensor
    sigma_squared: Tensor
    ratio: Tensor  # sigma / alpha

    @property
    def alpha(self) -> Tensor:
        if self.path == "vp":
            return 1 / (self.ratio**2 + 1) ** 0.5
        return self.alpha_squared**0.5

    @property
    def sigma(self) -> Tensor:
        if self.path == "vp":
            sigma = self.ratio * self.alpha
            return torch.where(self.ratio.isinf(), torch.ones_like(sigma), sigma)
        return self.sigma_squared**0.5

    @property
    def log_ratio(self) -> Tensor:
        """ln(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite at data."""
        return torch.log(self.alpha) - torch.log(self.sigma)
