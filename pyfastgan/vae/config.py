"""How to train each model."""

from __future__ import annotations

from dataclasses import dataclass

from pyfastgan._names import check_choice
from pyfastgan.training import TrainConfig
from pyfastgan.training.config import check_number
from pyfastgan.vae.model import LIKELIHOODS

NETWORKS = ("mlp", "conv")


@dataclass(kw_only=True)
class ImageConfig(TrainConfig):
    """What the trainers of this family share.

    Args:
        image_size: Pixels a side; by default as the data have.
        channels: Of the images, 1 for grey ones; by default as the data have.
        learning_rate: Of Adam.
    """

    image_size: int | None = None
    channels: int | None = None
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "channels"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=1)
        check_number("learning_rate", self.learning_rate, float, at_least=0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image; the networks cannot be built without it."""
        if self.image_size is None or self.channels is None:
            raise ValueError(
                "image_size and channels must be given where there are no data to take them from,"
                f" got {self.image_size} and {self.channels}"
            )
        return self.channels, self.image_size, self.image_size


@dataclass(kw_only=True)
class VAEConfig(ImageConfig):
    """How to train a variational autoencoder.

    Args:
        network: mlp (two hidden layers of `width` units) or conv (`width` channels at half the image
            size, doubled with every halving); by default mlp for images of up to 1024 numbers.
        width: See there; by default 400 or 32.
        latent_dim: Numbers in a latent vector.
        likelihood: bernoulli (of pixels drawn black or white by their brightness) or gaussian.
        conditional: Whether encoder and decoder are given the class of the image.
        classes: Of a conditional model; by default as the data have.
        beta: Factor of the divergence (Higgins et al. 2017); 1 is the ELBO.
        capacity: Train on nll + beta |KL - C| instead, where C rises evenly from 0 to this many nats
            (Burgess et al. 2018, whose beta is 1000).
        capacity_steps: Steps in which it rises.
        importance_samples: K of the bound to train on (Burda et al. 2016); 1 is the ELBO.
        test_samples: K of the estimate of the test NLL at the end.
    """

    network: str | None = None
    width: int | None = None
    latent_dim: int = 16
    likelihood: str = "bernoulli"
    conditional: bool = False
    classes: int | None = None
    beta: float = 1.0
    capacity: float | None = None
    capacity_steps: int = 10_000
    importance_samples: int = 1
    test_samples: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is not None:
            check_choice("network", self.network, NETWORKS)
        for name in ("latent_dim", "capacity_steps", "importance_samples", "test_samples"):
            check_number(name, getattr(self, name), int, at_least=1)
        for name in ("width", "classes"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=1)
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        check_number("beta", self.beta, float, at_least=0)
        if self.capacity is not None:
            check_number("capacity", self.capacity, float, at_least=0)
        if self.importance_samples > 1 and (self.beta != 1 or self.capacity is not None):
            raise ValueError(
                "beta and capacity weigh the divergence, which the bound of importance_samples > 1"
                f" does not have: got beta={self.beta}, capacity={self.capacity},"
                f" importance_samples={self.importance_samples}"
            )


@dataclass(kw_only=True)
class AutoencoderConfig(ImageConfig):
    """How to train an autoencoder without a likelihood.

    Args:
        network: mlp or conv as of a variational one, or linear: one linear layer each way.
        width: As of a variational one.
        latent_dim: Numbers in a code.
    """

    network: str | None = None
    width: int | None = None
    latent_dim: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is not None:
            check_choice("network", self.network, (*NETWORKS, "linear"))
        check_number("latent_dim", self.latent_dim, int, at_least=1)
        if self.width is not None:
            check_number("width", self.width, int, at_least=1)


@dataclass(kw_only=True)
class SparseCodingConfig(ImageConfig):
    """How to learn a dictionary.

    Args:
        atoms: Of the dictionary.
        penalty: Of the codes' magnitudes, where the squared error of an image is summed over its numbers
            and halved.
        iterations: Steps of FISTA that find the codes of an image.
    """

    atoms: int = 128
    penalty: float = 0.5
    iterations: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("atoms", "iterations"):
            check_number(name, getattr(self, name), int, at_least=1)
        check_number("penalty", self.penalty, float, at_least=0)
        if self.penalty == 0:
            raise ValueError("penalty must be above 0, got 0")


@dataclass(kw_only=True)
class VQConfig(ImageConfig):
    """How to train a VQ-VAE.

    Args:
        levels: 1, or 2 for VQ-VAE-2: a second map of codes of half the size.
        width: Channels of the networks.
        halvings: Convolutions of stride 2 up to the (larger) map; by default 2, or 1 for images below
            16 pixels.
        residual_blocks: In the encoder, and in the decoder.
        codes: K, the codes of a level's codebook.
        code_width: Numbers in a code.
        codebook: ema, or loss.
        gradient: straight-through, or rotation.
        commitment: Weight of the distance from what the encoder says to its code.
        decay: Of the codebook's moving averages.
        restart_below: A code that fewer vectors a batch choose on average starts anew; 0 never.
    """

    levels: int = 1
    width: int = 64
    halvings: int | None = None
    residual_blocks: int = 2
    codes: int = 128
    code_width: int = 32
    codebook: str = "ema"
    gradient: str = "straight-through"
    commitment: float = 0.25
    decay: float = 0.99
    restart_below: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("width", 1), ("code_width", 1), ("codes", 2), ("residual_blocks", 0)):
            check_number(name, getattr(self, name), int, at_least=least)
        check_number("levels", self.levels, int, at_least=1)
        if self.levels > 2:
            raise ValueError(f"levels must be 1 or 2, got {self.levels}")
        if self.halvings is not None:
            check_number("halvings", self.halvings, int, at_least=1)
        for name in ("commitment", "decay", "restart_below"):
            check_number(name, getattr(self, name), float, at_least=0)
