"""Pictures of what a flow has learned: samples at several temperatures, ways between images, densities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfastgan.flow.model import Flow
from pyfastgan.training import image_grid
from pyfastgan.training.grids import figure_pixels, new_figure

TEMPERATURES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_COLUMNS = 10
_NODES = 200  # a side of the mesh of densities
_CHUNK = 10_000


def temperatures(model: Flow, seed: int = 0) -> Any:
    """A picture: rows of samples of the same latent vectors at rising temperatures, 0 to 1."""
    rows = [model.sample(_COLUMNS, seed, temperature=t) for t in TEMPERATURES]
    return image_grid(torch.cat(rows), columns=_COLUMNS)


@torch.no_grad()
def interpolation(model: Flow, images: Tensor, labels: Tensor | None = None) -> Any:
    """A picture: on each row the straight way between the latent vectors of two images; the two are at its ends.

    Args:
        images: (2 N, C, H, W) in [-1, 1]: N pairs.
        labels: Of a conditional model; a row has the class of its first image.
    """
    pairs = len(images) // 2
    first = slice(0, 2 * pairs, 2)
    z = model.encode(images[: 2 * pairs], None if labels is None else labels[: 2 * pairs], seed=0)
    share = torch.linspace(0, 1, _COLUMNS, dtype=z.dtype, device=z.device)[:, None]
    between = torch.lerp(z[first, None], z[1 : 2 * pairs : 2, None], share).flatten(0, 1)
    given = None if labels is None else labels[first].repeat_interleave(_COLUMNS)
    return image_grid(model.decode(between, given), columns=_COLUMNS)


@torch.no_grad()
def density_picture(model: Flow, points: Tensor) -> np.ndarray:
    """A picture: the model's density over the plane, beside data points.

    Args:
        model: Over (2,).
        points: (N, 2) of the data; the picture is framed on all but the outermost of them.

    Returns:
        uint8 array (height, width, 3).
    """
    figure = new_figure(8.0, 4.0)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    points = points.float().cpu()
    low, high = points.quantile(0.001, 0), points.quantile(0.999, 0)
    margin = 0.08 * (high - low)
    lines = [
        torch.linspace(float(a), float(b), _NODES)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    weight = next(model.parameters())
    grid = torch.cartesian_prod(*lines).to(weight)
    density = torch.cat([model(part) for part in grid.split(_CHUNK)]).exp()
    heights = density.reshape(_NODES, _NODES).T.float().nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    x, y = (line.numpy() for line in lines)
    left.scatter(*points.T.numpy(), s=1, c="0.4")
    left.set_title("data")
    # Narrow peaks would leave the rest dark.
    right.pcolormesh(x, y, heights, vmax=np.quantile(heights, 0.995) or None, cmap="viridis")
    right.set_title("density of the flow")
    left.set_xlim(x[0], x[-1])
    left.set_ylim(y[0], y[-1])
    return figure_pixels(figure)
