"""Generative adversarial networks: objectives, the DCGAN networks, and their trainer."""

from pyfastgan.gan.arithmetic import arithmetic, class_latents
from pyfastgan.gan.dcgan import Discriminator, Generator
from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.objectives import (
    OBJECTIVES,
    Objective,
    discriminator_loss,
    generator_loss,
    get_objective,
)
from pyfastgan.gan.trainer import DCGAN, PRESETS, GANConfig, load, train

__all__ = [
    "DCGAN",
    "OBJECTIVES",
    "PRESETS",
    "Discriminator",
    "GANConfig",
    "Generator",
    "Objective",
    "arithmetic",
    "class_latents",
    "discriminator_loss",
    "generator_loss",
    "get_objective",
    "interpolate",
    "load",
    "train",
]
