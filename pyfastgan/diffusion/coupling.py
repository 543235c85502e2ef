"""Which noise belongs to which sample of a batch: optimal transport, for straighter paths (OT-CFM, Tong et al.
2024)."""

from __future__ import annotations

import torch
from torch import Tensor


def optimal_assignment(x0: Tensor, noise: Tensor) -> Tensor:
    """The permutation p, int64 (N,), for which sum_i |x0_i - noise_{p_i}|^2 is least.

    An assignment without replacement: the noise stays normally distributed, none is used twice.
    Solved on the host by SciPy's `linear_sum_assignment`, in up to N^3 operations.

    Args:
        x0: (N, ...) data.
        noise: (N, ...), of the same shape.

    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """
    from scipy.optimize import linear_sum_assignment

    if x0.shape != noise.shape or x0.dim() < 2:
        raise ValueError(
            "x0 and noise must be of one shape (N, ...),"
            f" got {tuple(x0.shape)} and {tuple(noise.shape)}"
        )
    a, b = x0.detach().flatten(1).double(), noise.detach().flatten(1).double()
    # |a|^2 and |b|^2 are the same for every permutation.
    cost = -(a @ b.T)
    if not bool(cost.isfinite().all()):
        raise ValueError("x0 and noise must be finite")
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(order).to(x0.device)
