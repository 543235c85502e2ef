"""What a GAN's training needs to know, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.data import TOYS
from pyfastgan.gan.augment import check_smoothing, parse_policy
from pyfastgan.gan.dcgan import IMAGE_SIZES
from pyfastgan.gan.mlp import HIDDEN_LAYERS
from pyfastgan.gan.objectives import get_objective
from pyfastgan.gan.penalties import get_penalty
from pyfastgan.training import TrainConfig
from pyfastgan.training.config import check_number

ARCHITECTURES = ("dcgan", "residual", "mlp")
OPTIMIZERS = ("adam", "rmsprop")


@dataclass(kw_only=True)
class GANConfig(TrainConfig):
    """How to train a GAN; the defaults are those of Radford et al. 2015 where the paper has one.

    Args:
        architecture: dcgan, residual (no norm layers), or mlp, for points in the plane.
        image_size: Pixels a side: 8, 16, 32, 64 or 128. By default the smallest of these, from 16
            on, that holds the data's own images. Nothing to an mlp.
        channels: Of the images, 1 for grey ones; by default as the data have. Nothing to an mlp.
        width: Channels of the maps of half the image size, doubled by every halving of the map; the
            units of an mlp's hidden layers.
        hidden_layers: Of an mlp.
        latent_dim: Numbers in a latent vector.
        discriminator_norm: Whether a dcgan discriminator has batch norm.
        spectral_norm: Whether the discriminator's weights are divided by their largest singular value.
        orthogonal_weight: Of the orthogonal regularisation of the discriminator's weights.
        pack: Samples that the discriminator judges at once (PacGAN).
        objective: What the players minimise: minimax, non-saturating, least-squares, hinge, wgan,
            relativistic, or a divergence: kl, reverse-kl, pearson, squared-hellinger, jensen-shannon,
            total-variation.
        penalty: Of the discriminator's gradient: wgan-gp, wgan-gp-one-sided, r1, r2, r1r2, dragan or
            none.
        penalty_weight: Its weight, at least 0.
        penalty_interval: The penalty is taken on one discriminator step in so many, with as many
            times the weight.
        clip: Size that the discriminator's weights are clipped to after each of its steps; 0 for no
            clipping.
        discriminator_steps: Steps of the discriminator for one of the generator. `steps` counts
            those of the discriminator, each on a batch of its own.
        optimizer: adam or rmsprop, for both networks.
        learning_rate: For both networks.
        betas: Of Adam, for both networks.
        augment: What the discriminator's images go through: some of color, translation and cutout with
            commas between them (Zhao et al. 2020), or none. Nothing to an mlp.
        label_smoothing: s for labels 1 - s instead of 1 (Salimans et al. 2016), for objectives that
            have labels, without a penalty.
    """

    architecture: str = "dcgan"
    image_size: int | None = None
    channels: int | None = None
    width: int = 64
    hidden_layers: int = HIDDEN_LAYERS
    latent_dim: int = 100
    discriminator_norm: bool = True
    spectral_norm: bool = False
    orthogonal_weight: float = 0.0
    pack: int = 1
    objective: str = "non-saturating"
    penalty: str = "none"
    penalty_weight: float = 10.0
    penalty_interval: int = 1
    clip: float = 0.0
    discriminator_steps: int = 1
    optimizer: str = "adam"
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    augment: str = "none"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("architecture", self.architecture, ARCHITECTURES)
        if parse_policy(self.augment) and self.architecture == "mlp":
            raise ValueError(f"augment is for images, got {self.augment!r} with architecture mlp")
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("image_size", "channels"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=1)
        if self.image_size not in (None, *IMAGE_SIZES):
            sizes = ", ".join(map(str, IMAGE_SIZES))
            raise ValueError(f"image_size must be one of {sizes}, got {self.image_size}")
        counts = "width hidden_layers latent_dim pack discriminator_steps penalty_interval"
        for name in counts.split():
            check_number(name, getattr(self, name), int, at_least=1)
        if self.batch_size // self.devices % self.pack:
            raise ValueError(
                "batch_size must be a multiple of pack on every device,"
                f" got {self.batch_size} on {self.devices} and {self.pack}"
            )
        get_objective(self.objective)
        check_smoothing(self.label_smoothing, self.objective)
        if self.penalty != "none":
            get_penalty(self.penalty)
            if self.label_smoothing > 0:
                raise ValueError(
                    f"label_smoothing needs penalty none, got {self.penalty!r}: steps with a penalty"
                    " have the objective's own labels"
                )
        for name in ("learning_rate", "penalty_weight", "orthogonal_weight", "clip"):
            check_number(name, getattr(self, name), float, at_least=0)
        self.betas = (self.betas[0], self.betas[1])
        for beta in self.betas:
            check_number("betas", beta, float, at_least=0)
            if beta >= 1:
                raise ValueError(f"betas must be below 1, got {self.betas}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """The size and the channels, which networks for images cannot be built without."""
        if self.image_size is None or self.channels is None:
            raise ValueError(
                "image_size and channels must be given where there are no data to take them from,"
                f" got {self.image_size} and {self.channels}"
            )
        return self.image_size, self.channels


PRESETS: dict[str, GANConfig] = {
    # Networks this small draw sharper digits with a higher learning rate than the paper's.
    "dcgan": GANConfig(data="digits", width=32, steps=6000, learning_rate=5e-4),
    # Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1.
    "wgan": GANConfig(
        data="digits",
        width=32,
        steps=20000,
        objective="wgan",
        clip=0.01,
        discriminator_steps=5,
        optimizer="rmsprop",
        learning_rate=5e-5,
    ),
    # Gulrajani et al. 2017, "Improved training of Wasserstein GANs", algorithm 1.
    "wgan-gp": GANConfig(
        data="digits",
        width=32,
        steps=15000,
        discriminator_norm=False,
        objective="wgan",
        penalty="wgan-gp",
        penalty_weight=10.0,
        discriminator_steps=5,
        learning_rate=1e-4,
        betas=(0.0, 0.9),
    ),
    # Huang et al. 2024, "The GAN is dead; long live the GAN! A modern baseline GAN", in small.
    "r3gan": GANConfig(
        data="digits",
        architecture="residual",
        width=16,
        latent_dim=64,
        steps=4000,
        objective="relativistic",
        penalty="r1r2",
        # Networks this small draw sharper digits with a higher rate than the paper's 2e-4.
        penalty_weight=0.5,
        learning_rate=6e-4,
        betas=(0.0, 0.99),
    ),
}

# For points in the plane: the networks and batches of the toys of Gulrajani et al. 2017 (figure 1).
_POINTS: dict[str, Any] = {
    "data": "8gaussians-wgan",
    "architecture": "mlp",
    "width": 512,
    "latent_dim": 2,
    "batch_size": 256,
    "sample_count": 1000,
}
# What the systems of the mode suite share: points in the plane with networks of 2 x 128 units...
MODES: dict[str, Any] = {
    "data": "ring8",
    "architecture": "mlp",
    "width": 128,
    "hidden_layers": 2,
    "latent_dim": 2,
    "batch_size": 512,
    "steps": 6000,
    "penalty_weight": 1.0,
    "learning_rate": 1e-3,
    "betas": (0.0, 0.9),
    "log_every": 100,
    "sample_every": 0,
    "checkpoint_every": 0,
    "sample_count": 2500,
}
# ... and stacked digits with DCGAN's.
STACKED: dict[str, Any] = {
    "data": "stacked-digits",
    "image_size": 8,
    "channels": 3,
    "width": 64,
    "steps": 4000,
    "penalty_weight": 1.0,
    "betas": (0.5, 0.999),
    "log_every": 100,
    "sample_every": 0,
    "checkpoint_every": 0,
}
POINT_PRESETS: dict[str, GANConfig] = {
    "wgan": replace(PRESETS["wgan"], **_POINTS),
    "wgan-gp": replace(PRESETS["wgan-gp"], **_POINTS, penalty_weight=0.1, betas=(0.5, 0.9)),
    "r3gan": GANConfig(**MODES, objective="relativistic", penalty="r1r2"),
}


def preset(name: str, data: Any = None) -> GANConfig:
    """The preset of that name for data of a kind: images, or points in the plane.

    Args:
        name: A name of `PRESETS`.
        data: What `pyfastgan.data.load` understands; None for the preset's own.

    Raises:
        ValueError: An unknown preset, with the nearest one.
    """
    check_choice("preset", name, PRESETS)
    points = name in POINT_PRESETS and are_points(data)
    return POINT_PRESETS[name] if points else PRESETS[name]


def are_points(data: Any) -> bool:
    """Whether data, or those of that name, are points in the plane."""
    if isinstance(data, str):
        return data in TOYS
    return data.ndim == 2 if isinstance(data, Tensor) else getattr(data, "shape", ()) == (2,)
