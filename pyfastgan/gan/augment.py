"""What a discriminator is shown and told: differentiable augmentation, and softened labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.ops import random_uniform
from pyfastgan.training.config import check_number

POLICIES = ("color", "translation", "cutout")
# The objectives that tell the discriminator a label of each image, 1 or 0.
_LABELLED = ("minimax", "non-saturating", "least-squares")
_DRAWS = 7


def parse_policy(text: str) -> tuple[str, ...]:
    """The names in "color,translation,cutout", or none in "none".

    Raises `ValueError` for others, with the nearest.
    """
    if text == "none":
        return ()
    names = tuple(text.split(","))
    for name in names:
        check_choice("augment", name, POLICIES)
    return names


def diff_augment(
    images: Tensor,
    policy: str = "color,translation,cutout",
    *,
    seed: int | None = None,
    stream: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    """Images as a discriminator is shown them, real and generated ones alike (Zhao et al. 2020,
    "Differentiable augmentation for data-efficient GAN training", with the strengths of its code).

    color:        brightness x + U(-1/2, 1/2), then saturation (distance from the pixel's mean times
                  U(0, 2)), then contrast (distance from the image's mean times U(1/2, 3/2));
    translation:  by up to an eighth of the size, onto zeros;
    cutout:       a square of half the size, anywhere, becomes zero.

    Args:
        images: (N, C, H, W), floating point, in [-1, 1].
        policy: Some of these names with commas between them, taken in that order, or none.
        seed, stream, sample_offset: As in `pyfastgan.ops.random_uniform`; an image's changes depend
            on these and on its place in the batch alone.

    Returns:
        Of the images' shape and dtype; differentiable twice by the images.

    Raises:
        TypeError, ValueError: An unknown policy (with the nearest), what is no batch of images.
    """
    names = parse_policy(policy)
    if not names:
        return images
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor, got {kind}")
    if images.ndim != 4:
        raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")
    drawn = random_uniform(
        (len(images), _DRAWS),
        seed,
        stream=stream,
        sample_offset=sample_offset,
        device=images.device,
    )
    ways = {"color": _color, "translation": _translate, "cutout": _cut}
    for name in POLICIES:
        if name in names:
            images = ways[name](images, drawn)
    return images


def _color(images: Tensor, drawn: Tensor) -> Tensor:
    brightness, saturation, contrast = (
        column.to(images.dtype)[:, None, None, None] for column in drawn[:, :3].unbind(1)
    )
    images = images + (brightness - 0.5)
    if images.shape[1] > 1:
        grey = images.mean(1, keepdim=True)
        images = torch.lerp(grey, images, 2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, contrast + 0.5)


def _translate(images: Tensor, drawn: Tensor) -> Tensor:
    for column, side in ((3, 2), (4, 3)):
        size = images.shape[side]
        reach = int(size / 8 + 0.5)
        by = (drawn[:, column] * (2 * reach + 1)).long().clamp(max=2 * reach) - reach
        # A product with a shifted unit matrix: rows from outside are zero, and a gradient is as
        # cheap as the image.
        places = torch.arange(size, device=images.device)
        shift = (places[:, None] + by[:, None, None] == places).to(images.dtype)
        if side == 2:
            images = shift[:, None] @ images
        else:
            images = images @ shift[:, None].mT
    return images


def _cut(images: Tensor, drawn: Tensor) -> Tensor:
    inside = []
    for column, side in ((5, 2), (6, 3)):
        size = images.shape[side]
        length = int(size / 2 + 0.5)
        choices = size + 1 - length % 2  # where its middle may be
        middle = (drawn[:, column] * choices).long().clamp(max=choices - 1)
        places = torch.arange(size, device=images.device)
        first = middle - length // 2
        inside.append((places >= first[:, None]) & (places < first[:, None] + length))
    kept = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return images * kept[:, None].to(images.dtype)


def check_smoothing(smoothing: float, objective: str) -> None:
    """Refuses what is below 0 or at least 1, and any but 0 where the objective has no labels."""
    check_number("label_smoothing", smoothing, float, at_least=0)
    if smoothing >= 1:
        raise ValueError(f"label_smoothing must be below 1, got {smoothing}")
    if smoothing > 0 and objective not in _LABELLED:
        raise ValueError(
            f"label_smoothing needs an objective with labels ({', '.join(_LABELLED)}),"
            f" got {objective!r}"
        )


def smoothing_loss(smoothing: float, real: Tensor) -> Tensor:
    """What a label of 1 - smoothing for real samples adds to a discriminator's loss (one-sided
    label smoothing, Salimans et al. 2016): smoothing times the mean output on real samples.

    For the cross entropy, -(1 - s) log D - s log(1 - D) = -log D + s r with D = sigmoid(r). For least
    squares, (r - 1 + s)^2 / 2 = (r - 1)^2 / 2 + s r + a constant, which is left out.
    """
    return smoothing * real.float().mean()
