"""The critic over the plane, as in figure 1 of Gulrajani et al. 2017."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyfastgan.training.grids import figure_pixels, new_figure

_NODES = 128  # a side of the mesh
_LEVELS = 16


@torch.no_grad()
def level_set_picture(
    critic: Callable[[Tensor], Tensor], samples: Tensor, data: Tensor | None = None
) -> np.ndarray:
    """Draw a critic's level sets, with data in orange and samples in green.

    Args:
        critic: Points (M, 2) to scores (M,) or (M, 1).
        samples: (N, 2), finite or not.
        data: (K, 2); the picture is framed on them, or on the samples where there are none.

    Returns:
        uint8 array (height, width, 3).
    """
    figure = new_figure(5.0, 5.0)
    axes = figure.add_subplot()
    points = samples if data is None else data
    points = points[points.isfinite().all(1)]
    low, high = points.amin(0), points.amax(0)
    # Square, with a margin, since slopes are read off the distances of the lines.
    middle, reach = (low + high) / 2, 0.65 * float((high - low).max())
    lines = [float(centre) + torch.linspace(-reach, reach, _NODES) for centre in middle]
    grid = torch.cartesian_prod(*lines).to(samples)
    heights = critic(grid).reshape(_NODES, _NODES).T.float().cpu().numpy()
    x, y = (line.numpy() for line in lines)
    if np.isfinite(heights).all() and np.ptp(heights) > 0:
        axes.contourf(x, y, heights, levels=_LEVELS, cmap="Blues_r", alpha=0.5)
        axes.contour(
            x, y, heights, levels=_LEVELS, colors="0.3", linewidths=0.5, linestyles="solid"
        )
    for drawn, colour, label in ((data, "tab:orange", "data"), (samples, "tab:green", "samples")):
        if drawn is not None:
            along, up = drawn.float().cpu().T.numpy()
            axes.scatter(along, up, s=2, c=colour, label=label)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    axes.set_aspect("equal")
    axes.legend(loc="upper right", fontsize="small")
    return figure_pixels(figure)
