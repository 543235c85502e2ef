"""Generative adversarial networks: objectives, the DCGAN networks, and their trainer."""

from pyfastgan.gan.adversarial_step import AdversarialStep, adversarial_step
from pyfastgan.gan.critic_step import CriticStep, critic_step
from pyfastgan.gan.dcgan import Discriminator, Generator
from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.objectives import (
    OBJECTIVES,
    Objective,
    Term,
    discriminator_loss,
    discriminator_slopes,
    generator_loss,
    generator_slope,
    get_objective,
)
from pyfastgan.gan.penalties import (
    PENALTIES,
    Penalty,
    get_penalty,
    gradient_penalty,
    penalty_gradient,
    penalty_points,
    penalty_value,
)
from pyfastgan.gan.trainer import DCGAN, PRESETS, GANConfig, load, train

__all__ = [
    "DCGAN",
    "OBJECTIVES",
    "PENALTIES",
    "PRESETS",
    "AdversarialStep",
    "CriticStep",
    "Discriminator",
    "GANConfig",
    "Generator",
    "Objective",
    "Penalty",
    "Term",
    "adversarial_step",
    "critic_step",
    "discriminator_loss",
    "discriminator_slopes",
    "generator_loss",
    "generator_slope",
    "get_objective",
    "get_penalty",
    "gradient_penalty",
    "interpolate",
    "load",
    "penalty_gradient",
    "penalty_points",
    "penalty_value",
    "train",
]
