"""The configuration of class-conditional GANs."""

from __future__ import annotations

from dataclasses import dataclass

from pyfastgan._names import check_choice
from pyfastgan.gan.augment import check_smoothing, parse_policy
from pyfastgan.gan.biggan import BIGGAN_SIZES
from pyfastgan.gan.conditional_networks import CONDITIONINGS
from pyfastgan.gan.dcgan import IMAGE_SIZES
from pyfastgan.gan.objectives import get_objective
from pyfastgan.gan.penalties import get_penalty
from pyfastgan.gan.translation import check_betas
from pyfastgan.training import TrainConfig
from pyfastgan.training.config import check_number

ARCHITECTURES = ("dcgan", "biggan")


@dataclass(kw_only=True)
class ConditionalConfig(TrainConfig):
    """How to train a class-conditional GAN.

    Args:
        architecture: dcgan or biggan.
        conditioning: How the discriminator learns of the class: concat, projection or auxiliary; of
            biggan always projection.
        image_size: Pixels a side: 8, 16, 32, 64 or 128 of dcgan, 16 to 512 of biggan. By default the
            smallest of these, from 16 on, that holds the data's own images.
        channels, classes: By default as the data have.
        width: Of dcgan as in `GANConfig`; of biggan, ch of its paper.
        latent_dim: Numbers in a latent vector; of biggan a multiple of its blocks + 1.
        embedding: Numbers that biggan's generator embeds a class in.
        discriminator_norm: Whether a dcgan discriminator has batch norm.
        objective: A name of `pyfastgan.gan.OBJECTIVES`.
        penalty, penalty_weight, penalty_interval: As in `GANConfig`.
        classifier_weight: Of both players' cross entropy of the classes, with auxiliary conditioning.
        label_smoothing: s for labels 1 - s instead of 1 (Salimans et al. 2016), for objectives that have
            labels.
        augment: What the discriminator's images go through: some of color, translation and cutout with
            commas between them (Zhao et al. 2020), or none.
        orthogonal: Strength of the orthogonal regularisation of the generator's weights.
        discriminator_steps: Steps of the discriminator for one of the generator; `steps` counts those
            of the discriminator.
        accumulate: Parts of a batch that are computed one after the other, so that a batch may be so
            many times as large as what memory holds.
        learning_rate, discriminator_learning_rate: Of Adam, for the generator, and for the
            discriminator, by default the same.
        betas: Of Adam, for both.
    """

    architecture: str = "dcgan"
    conditioning: str = "concat"
    image_size: int | None = None
    channels: int | None = None
    classes: int | None = None
    width: int = 64
    latent_dim: int = 100
    embedding: int = 128
    discriminator_norm: bool = True
    objective: str = "non-saturating"
    penalty: str = "none"
    penalty_weight: float = 10.0
    penalty_interval: int = 1
    classifier_weight: float = 1.0
    label_smoothing: float = 0.0
    augment: str = "none"
    orthogonal: float = 0.0
    discriminator_steps: int = 1
    accumulate: int = 1
    learning_rate: float = 2e-4
    discriminator_learning_rate: float | None = None
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        if self.architecture == "biggan" and self.conditioning != "projection":
            raise ValueError(
                f"conditioning of biggan must be projection, got {self.conditioning!r}"
            )
        if self.image_size not in (None, *self.sizes):
            sizes = ", ".join(map(str, self.sizes))
            raise ValueError(f"image_size must be one of {sizes}, got {self.image_size}")
        for name in ("channels", "classes"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=1)
        for name in ("width", "latent_dim", "embedding", "penalty_interval"):
            check_number(name, getattr(self, name), int, at_least=1)
        for name in ("discriminator_steps", "accumulate"):
            check_number(name, getattr(self, name), int, at_least=1)
        if self.batch_size % (self.accumulate * self.devices):
            raise ValueError(
                "batch_size must be a multiple of accumulate times devices,"
                f" got {self.batch_size}, {self.accumulate} and {self.devices}"
            )
        get_objective(self.objective)
        if self.penalty != "none":
            get_penalty(self.penalty)
        check_smoothing(self.label_smoothing, self.objective)
        parse_policy(self.augment)
        for name in ("penalty_weight", "classifier_weight", "orthogonal", "learning_rate"):
            check_number(name, getattr(self, name), float, at_least=0)
        if self.discriminator_learning_rate is not None:
            rate = self.discriminator_learning_rate
            check_number("discriminator_learning_rate", rate, float, at_least=0)
        check_betas(self.betas)
        self.betas = (self.betas[0], self.betas[1])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those that the architecture has."""
        return BIGGAN_SIZES if self.architecture == "biggan" else IMAGE_SIZES

    @property
    def shapes(self) -> dict[str, int]:
        """Of the images, and the number of classes, without which there are no networks."""
        found = {name: getattr(self, name) for name in ("image_size", "channels", "classes")}
        if None in found.values():
            raise ValueError(
                "image_size, channels and classes must be given where there are no data to take"
                f" them from, got {', '.join(map(str, found.values()))}"
            )
        return found
