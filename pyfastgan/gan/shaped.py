"""What systems for images and for points in the plane alike are made of: their configuration, their
data, and a perceptron."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from pyfastgan import data as data_sets
from pyfastgan.gan.dcgan import IMAGE_SIZES
from pyfastgan.training import TrainConfig
from pyfastgan.training.config import check_number


@dataclass(kw_only=True)
class ShapedConfig(TrainConfig):
    """What is known of the data, and of every optimizer.

    Args:
        image_size: Pixels a side: 8, 16, 32, 64 or 128. By default the smallest of these, from 16 on,
            that holds the data's own images. None stays None for points in the plane.
        channels: Of the images; by default as the data have. None for points, likewise.
        width: Units of hidden layers, or channels of the maps of half the image size.
        latent_dim: Numbers in a latent vector.
        learning_rate, betas: Of Adam, for all networks.
    """

    image_size: int | None = None
    channels: int | None = None
    width: int = 128
    latent_dim: int = 32
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size not in (None, *IMAGE_SIZES):
            sizes = ", ".join(map(str, IMAGE_SIZES))
            raise ValueError(f"image_size must be one of {sizes}, got {self.image_size}")
        if self.channels is not None:
            check_number("channels", self.channels, int, at_least=1)
        for name in ("width", "latent_dim"):
            check_number(name, getattr(self, name), int, at_least=1)
        check_number("learning_rate", self.learning_rate, float, at_least=0)
        self.betas = (self.betas[0], self.betas[1])
        for beta in self.betas:
            check_number("betas", beta, float, at_least=0)
            if beta >= 1:
                raise ValueError(f"betas must be below 1, got {self.betas}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an item: (2,), or (channels, image_size, image_size)."""
        if self.image_size is None or self.channels is None:
            return (2,)
        return self.channels, self.image_size, self.image_size


ConfigT = TypeVar("ConfigT", bound=ShapedConfig)


def shaped_data(config: ConfigT, own: Any, *, points: bool = True) -> tuple[ConfigT, Any]:
    """The configuration with what it left open, and the data.

    Args:
        config: With the name of the data.
        own: The caller's own data set, or None.
        points: Whether points in the plane will do.

    Raises:
        ValueError: Data of another shape than the configuration's, or of one that no network here
            takes.
    """
    if own is not None:
        dataset = own
    elif config.data == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    elif config.data in data_sets.TOYS:
        dataset = data_sets.load(config.data)
    else:
        dataset = square_images(config.data, config.image_size)
    shape = dataset.shape
    wanted = (config.channels, config.image_size)
    if shape == (2,) and points and wanted == (None, None):
        return config, dataset
    fits = len(shape) == 3 and shape[1] == shape[2] and shape[2] in IMAGE_SIZES
    fits = fits and all(a in (None, b) for a, b in zip(wanted, (shape[0], shape[-1]), strict=True))
    if not fits:
        channels, size = (str(w) if w is not None else "any" for w in wanted)
        raise ValueError(
            f"data must be square images of {size} pixels (8, 16, 32, 64 or 128) and {channels}"
            f" channels{' or points (2,)' if points else ''}, got items of shape {tuple(shape)}"
        )
    return replace(config, channels=shape[0], image_size=shape[-1]), dataset


def square_images(name: str, size: int | None) -> Any:
    """The data set of that name, its images square: `size` pixels a side, or a size that suits
    it."""
    if size is None:
        dataset = data_sets.load(name)
        own = min(dataset.shape[1:])
        size = next((s for s in IMAGE_SIZES if s >= max(own, 16)), IMAGE_SIZES[-1])
        if dataset.shape[1:] == (size, size):
            return dataset
    return data_sets.load(name, size=size)


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers between vectors of these sizes, with ReLU between them; weights of variance
    2 / fan-in (He et al. 2015), and biases of zero."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        linear = nn.Linear(before, after)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
