"""What the trainers of image-to-image translation share: data, pictures, and the model of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyfastgan import data as data_sets
from pyfastgan.data import PairData, UnpairedData
from pyfastgan.gan.translation_networks import check_power_of_two
from pyfastgan.training import TrainConfig
from pyfastgan.training.config import check_number

_BUILT_IN = ("digits2bold", "edges2photos")
TwoKinds = PairData | UnpairedData


@dataclass(kw_only=True)
class TranslationConfig(TrainConfig):
    """What pix2pix and CycleGAN share.

    Args:
        image_size: Pixels a side, a power of two of at least 16; by default as the data have.
        in_channels, out_channels: Of the images that are given and of those that are made; by default
            as the data have.
        width: Channels of the first layers.
        discriminator_layers: Of stride 2, in a discriminator.
        learning_rate, betas: Of Adam, for all networks.
    """

    data: str = "digits2bold"
    batch_size: int = 1
    image_size: int | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    width: int = 64
    discriminator_layers: int = 3
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None:
            check_power_of_two("image_size", self.image_size, at_least=16)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=1)
        for name in ("width", "discriminator_layers"):
            check_number(name, getattr(self, name), int, at_least=1)
        check_number("learning_rate", self.learning_rate, float, at_least=0)
        check_betas(self.betas)
        self.betas = (self.betas[0], self.betas[1])

    @property
    def shapes(self) -> tuple[int, int, int]:
        """The size, and the channels of the images given and made, without which there are no
        networks."""
        if self.image_size is None or self.in_channels is None or self.out_channels is None:
            raise ValueError(
                "image_size, in_channels and out_channels must be given where there are no data to"
                f" take them from, got {self.image_size}, {self.in_channels}, {self.out_channels}"
            )
        return self.image_size, self.in_channels, self.out_channels


ConfigT = TypeVar("ConfigT", bound=TranslationConfig)


def check_betas(betas: tuple[float, ...]) -> None:
    """Refuses what is not in [0, 1)."""
    for beta in betas:
        check_number("betas", beta, float, at_least=0)
        if beta >= 1:
            raise ValueError(f"betas must be below 1, got {tuple(betas)}")


def translation_data(
    config: ConfigT, own: Any, *, paired: bool
) -> tuple[ConfigT, TwoKinds, TwoKinds | None]:
    """The configuration with what it left open, the data to train on, and a test split or None.

    Of built-in data the training split is taken, and the configuration says so.

    Raises `ValueError` for data without two kinds of images, without pairs where they are needed, or of
    another size or number of channels than the configuration has.
    """
    if own is None and config.data == data_sets.OWN:
        raise ValueError("data must be given: this configuration is of a run on the caller's own")
    test = None
    if own is not None:
        train = own
    else:
        if config.data in _BUILT_IN:
            config = replace(config, data=f"{config.data}:train")
        train, test = load_named(config.data, config.image_size)
    if isinstance(train, PairData) and not paired:
        train = train.unpaired()
    if not isinstance(train, PairData if paired else UnpairedData):
        wanted = "pairs of images" if paired else "images of two kinds"
        raise ValueError(
            f"data must be {wanted} (digits2bold, edges2photos, {'pairs' if paired else 'unpaired'}"
            f":PATH, or a pyfastgan.data.{'PairData' if paired else 'UnpairedData'}), got"
            f" {config.data!r}, {type(train).__name__}"
        )
    given, made = train.shape, train.target_shape
    if given[1] != given[2] or config.image_size not in (None, given[1]):
        raise ValueError(
            f"the images must be square with image_size={config.image_size or 'a power of two'}"
            f" pixels a side, got {given[1]} x {given[2]}: choose a size to resize them to"
            " (--image_size)"
        )
    for name, found in (("in_channels", given[0]), ("out_channels", made[0])):
        if getattr(config, name) not in (None, found):
            raise ValueError(
                f"{name} is {getattr(config, name)}, but the images have {found} channels"
            )
    config = replace(config, image_size=given[1], in_channels=given[0], out_channels=made[0])
    return config, train, test


def load_named(name: str, size: int | None) -> tuple[Any, Any]:
    """The data of that name, and their test split or None."""
    kind, _, part = name.partition(":")
    options = {} if size is None else {"size": size}
    train = data_sets.load(name, **options)
    if kind in _BUILT_IN:
        return train, data_sets.load(f"{kind}:test", **options) if part == "train" else None
    if kind in ("pairs", "unpaired"):
        try:
            return train, data_sets.load(name, split="test", **options)
        except ValueError:
            return train, None  # there is no testA and testB
    return train, None


def some_of(dataset: TwoKinds, count: int) -> tuple[Tensor, ...]:
    """Items from all over the data, stacked."""
    count = min(count, len(dataset))
    items = [dataset[i * len(dataset) // count] for i in range(count)]
    return tuple(torch.stack(parts) for parts in zip(*items, strict=True))


def side_by_side(*images: Tensor) -> Tensor:
    """(N, C, H, W) each to (N, C, H, k W), grey ones in the colours of the others."""
    channels = max(part.shape[1] for part in images)
    wide = [part.expand(-1, channels, -1, -1) for part in images]
    return torch.cat([part.to(wide[0].device) for part in wide], 3)


class Translator(nn.Module):
    """The model of a run: images of the first kind (N, C, H, W) to images of the second.

    Args:
        generator: From the first kind to the second.
        inverse: The way back, or None.
        given: What gives the images that `sample` translates.
    """

    def __init__(
        self, generator: nn.Module, inverse: nn.Module | None, given: Callable[[], Tensor]
    ) -> None:
        super().__init__()
        self.generator, self.inverse, self._given = generator, inverse, given

    def forward(self, images: Tensor) -> Tensor:
        return self.generator(images)

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Translations of `count` images drawn from the run's data, its test split where there is one.

        Raises `ValueError` for a run on data that were handed over in Python.
        """
        given = self._given()
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        chosen = torch.randint(len(given), (count,), generator=generator)
        weight = next(self.generator.parameters())
        with torch.random.fork_rng(devices=[]):  # dropout's
            torch.manual_seed(0 if seed is None else seed)
            parts = given[chosen].to(weight).split(64)
            return torch.cat([self.generator(part) for part in parts])


def given_images(config: TranslationConfig) -> Callable[[], Tensor]:
    """What loads the images that a run's model translates."""

    def load() -> Tensor:
        if config.data == data_sets.OWN:
            raise ValueError(
                "the run was trained on data handed over in Python: translate images of your own,"
                " pyfastgan.gan.load(run)(images)"
            )
        train, test = load_named(config.data, config.image_size)
        dataset = train if test is None else test
        return some_of(dataset, len(dataset))[0]

    return load
