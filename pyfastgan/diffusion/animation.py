"""Moving pictures: points on their way, images out of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyfastgan.training import image_grid
from pyfastgan.training.files import atomic

# A frame of points.
_PIXELS = 320
_FRAME_MS, _LAST_MS = 80, 1500
_MOST_FRAMES = 40


def save_gif(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write frames uint8 (height, width, 3) as an endless GIF that rests at its last frame, atomically."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    times = [_FRAME_MS] * (len(pictures) - 1) + [_LAST_MS]
    with atomic(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=times,
            loop=0,
        )


class Recorder:
    """Keeps the states of a sampling loop: give it as `after` to a sampler.

    Args:
        stages: The calls of the loop; of more than 40 a part is kept.
    """

    def __init__(self, stages: int) -> None:
        self.kept = set(np.linspace(0, stages - 1, min(stages, _MOST_FRAMES)).round().astype(int))
        self.states: list[Tensor] = []

    def __call__(self, stage: int, x: Tensor) -> Tensor:
        if stage in self.kept:
            self.states.append(x)
        return x


def frames(
    states: Sequence[Tensor], finish: Callable[[Tensor], Tensor], reference: Tensor | None = None
) -> list[np.ndarray]:
    """A frame for each state.

    Args:
        states: (N, ...) each, in the network's units.
        finish: To images in [-1, 1], or points (N, 2).
        reference: Points of the data, to draw in grey.
    """
    pictures = [finish(state).float().cpu() for state in states]
    if pictures[0].ndim == 4:
        return [image_grid(picture) for picture in pictures]
    return points_frames(pictures, reference)


def points_frames(states: Sequence[Tensor], reference: Tensor | None) -> list[np.ndarray]:
    """Frames of points (N, 2), blue, over those of the data, grey."""
    framed = (states[-1] if reference is None else reference).float()
    framed = framed[framed.isfinite().all(1)]
    if not len(framed):
        framed = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    # Without the farthest, since a single stray point would shrink the rest to a dot.
    low, high = framed.quantile(0.005, 0), framed.quantile(0.995, 0)
    middle, half = (low + high) / 2, float((high - low).max()) * 0.65 + 1e-6
    ground = np.full((_PIXELS, _PIXELS, 3), 255, np.uint8)
    if reference is not None:
        _dots(ground, reference.float(), middle, half, (190, 190, 190), 1)
    found = []
    for state in states:
        frame = ground.copy()
        _dots(frame, state, middle, half, (31, 119, 180), 2)
        found.append(frame)
    return found


def _dots(
    frame: np.ndarray,
    points: Tensor,
    middle: Tensor,
    half: float,
    colour: tuple[int, ...],
    size: int,
) -> None:
    place = ((points - middle) / half + 1) * (_PIXELS / 2)
    place = place[(place.isfinite() & (place >= 0) & (place < _PIXELS - size)).all(1)].long()
    x, y = place[:, 0].numpy(), _PIXELS - size - place[:, 1].numpy()
    for down in range(size):
        for right in range(size):
            frame[y + down, x + right] = colour
