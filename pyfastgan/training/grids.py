"""Pictures of samples: PNG grids of images, scatter plots of points, loss curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyfastgan.training.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Images narrower than this are enlarged by a whole factor: 8 pixel digits are hard to see
# otherwise.
_VISIBLE_PIXELS = 32
_PADDING = 2


def image_grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """Lay images out in rows, as near to a square as their number allows.

    Args:
        images: (N, C, H, W) in [-1, 1], C = 1 or 3; what lies outside is clipped, NaN is black.
        columns: Images in a row; by default ceil(sqrt(N)).

    Returns:
        uint8 array (height, width, 3).

    Raises:
        ValueError: Another shape, or no image.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must be (N, 1 or 3, H, W) with N > 0, got {tuple(images.shape)}")
    count, _, height, width = images.shape
    scaled = images.detach().float().nan_to_num(-1.0).clamp(-1, 1).add(1).mul(127.5).round()
    pixels = scaled.byte().expand(count, 3, height, width).permute(0, 2, 3, 1).cpu().numpy()
    factor = max(1, _VISIBLE_PIXELS // max(height, width))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full(
        (rows * (height + _PADDING) + _PADDING, columns * (width + _PADDING) + _PADDING, 3),
        255,
        np.uint8,
    )
    for i, image in enumerate(pixels):
        top = _PADDING + (i // columns) * (height + _PADDING)
        left = _PADDING + (i % columns) * (width + _PADDING)
        grid[top : top + height, left : left + width] = image
    return grid


def scatter_picture(points: Tensor, reference: Tensor | None = None) -> np.ndarray:
    """Draw 2-D points in blue, over data points in grey.

    Args:
        points: (N, 2).
        reference: (M, 2) of the data; the picture is framed on them.

    Returns:
        uint8 array (height, width, 3).
    """
    figure = new_figure(4.0, 4.0)
    axes = figure.add_subplot()
    if reference is not None:
        x, y = reference.detach().float().cpu().T.numpy()
        axes.scatter(x, y, s=1, c="0.7", label="data")
        # Framed before the samples come, since a single stray one would shrink the rest to a dot.
        axes.set_xlim(*axes.get_xlim())
        axes.set_ylim(*axes.get_ylim())
    x, y = points.detach().float().cpu().T.numpy()
    axes.scatter(x, y, s=3, c="tab:blue", label="samples")
    axes.set_aspect("equal", adjustable="datalim" if reference is None else "box")
    axes.legend(loc="upper right", fontsize="small")
    return figure_pixels(figure)


def loss_picture(history: Sequence[dict[str, Any]], names: Sequence[str]) -> np.ndarray:
    """Plot columns of metrics.csv over the steps; uint8 array (height, width, 3)."""
    figure = new_figure(7.0, 4.0)
    axes = figure.add_subplot()
    for name in names:
        rows = [(row["step"], row[name]) for row in history if row.get(name) is not None]
        axes.plot([step for step, _ in rows], [value for _, value in rows], label=name, lw=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if names:
        axes.legend()
    return figure_pixels(figure)


def sample_picture(samples: Tensor, reference: Tensor | None = None) -> np.ndarray:
    """The picture that suits the samples: a grid of images, or a scatter plot of (N, 2) points.

    Raises:
        ValueError: Samples of another shape.
    """
    if samples.ndim == 2 and samples.shape[1] == 2:
        return scatter_picture(samples, reference)
    return image_grid(samples)


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write a (height, width, 3) uint8 array as PNG, atomically."""
    from PIL import Image

    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def save_samples(samples: Tensor, path: Path) -> None:
    """Write `sample_picture(samples)` to a PNG file."""
    save_png(sample_picture(samples), path)


def new_figure(width: float, height: float) -> Figure:
    """A figure that no window system and no global state of pyplot knows of; inches at 100 dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def figure_pixels(figure: Figure) -> np.ndarray:
    """Draw it: uint8 array (height, width, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
