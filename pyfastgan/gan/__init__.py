"""Generative adversarial networks: objectives, the DCGAN networks, and their trainer."""

from pyfastgan.gan.adversarial_step import AdversarialStep, adversarial_step
from pyfastgan.gan.arithmetic import arithmetic, class_latents
from pyfastgan.gan.config import POINT_PRESETS, PRESETS, GANConfig, preset
from pyfastgan.gan.critic_step import CriticStep, critic_step
from pyfastgan.gan.dcgan import Discriminator, Generator
from pyfastgan.gan.latent import interpolate
from pyfastgan.gan.mlp import MLPCritic, MLPGenerator
from pyfastgan.gan.mode_suite import judge_run, run_suite, system_config
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
from pyfastgan.gan.orthogonal import orthogonal_penalty
from pyfastgan.gan.packing import packed
from pyfastgan.gan.penalties import (
    PENALTIES,
    Penalty,
    get_penalty,
    gradient_penalty,
    penalty_gradient,
    penalty_points,
    penalty_value,
)
from pyfastgan.gan.residual import ResidualCritic, ResidualGenerator
from pyfastgan.gan.trainer import GAN, load, train

__all__ = [
    "GAN",
    "OBJECTIVES",
    "PENALTIES",
    "POINT_PRESETS",
    "PRESETS",
    "AdversarialStep",
    "CriticStep",
    "Discriminator",
    "GANConfig",
    "Generator",
    "MLPCritic",
    "MLPGenerator",
    "Objective",
    "Penalty",
    "ResidualCritic",
    "ResidualGenerator",
    "Term",
    "adversarial_step",
    "arithmetic",
    "class_latents",
    "critic_step",
    "discriminator_loss",
    "discriminator_slopes",
    "generator_loss",
    "generator_slope",
    "get_objective",
    "get_penalty",
    "gradient_penalty",
    "interpolate",
    "judge_run",
    "load",
    "orthogonal_penalty",
    "packed",
    "penalty_gradient",
    "penalty_points",
    "penalty_value",
    "preset",
    "run_suite",
    "system_config",
    "train",
]
