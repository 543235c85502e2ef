"""Rational-quadratic splines in the terms of the libraries."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyfastgan.ops.rational_quadratic_spline import packed_rational_quadratic_spline


def packed_spline(
    part: Any, x: Tensor, logits: Tensor, hidden: int | None, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The spline of a part of nflows or normflows, summed over a sample.

    Args:
        part: has num_bins, tails ("linear" or None), tail_bound, min_bin_width, min_bin_height and min_derivative.
        x: (N, ...).
        logits: (*x.shape, 3 K - 1), or 3 K + 1 without tails.
        hidden: the logits of widths and heights are divided by its square root, if it is known.
    """
    return packed_rational_quadratic_spline(
        x,
        logits,
        inverse=inverse,
        tails=part.tails,
        tail_bound=part.tail_bound if part.tails else 1.0,
        min_bin_width=part.min_bin_width,
        min_bin_height=part.min_bin_height,
        min_derivative=part.min_derivative,
        logit_scale=hidden**-0.5 if hidden else 1.0,
    )


def hidden_size(network: Any) -> int | None:
    """What nflows and normflows divide the logits of a network by, squared."""
    for name in ("hidden_features", "hidden_channels"):
        if hasattr(network, name):
            return getattr(network, name)
    return None
