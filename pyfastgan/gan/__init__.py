"""Generative adversarial networks: objectives, networks, and their trainers."""

from pyfastgan.gan.adversarial_step import AdversarialStep, adversarial_step
from pyfastgan.gan.arithmetic import arithmetic, class_latents
from pyfastgan.gan.augment import diff_augment
from pyfastgan.gan.biggan import BigGANDiscriminator, BigGANGenerator, SelfAttention
from pyfastgan.gan.conditional import ConditionalConfig, ConditionalGAN
from pyfastgan.gan.conditional_networks import ConditionalDiscriminator, ConditionalGenerator
from pyfastgan.gan.config import POINT_PRESETS, GANConfig
from pyfastgan.gan.critic_step import CriticStep, critic_step
from pyfastgan.gan.cyclegan import CycleGAN, CycleGANConfig, ImageHistory
from pyfastgan.gan.dcgan import Discriminator, Generator
from pyfastgan.gan.gmmn import GMMN, GMMNConfig
from pyfastgan.gan.latent import draw_normal, interpolate
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
from pyfastgan.gan.pix2pix import Pix2Pix, Pix2PixConfig
from pyfastgan.gan.progressive import GrowingDiscriminator, GrowingGenerator
from pyfastgan.gan.progressive_system import ProgressiveConfig, ProgressiveGAN
from pyfastgan.gan.residual import ResidualCritic, ResidualGenerator
from pyfastgan.gan.stylegan2 import StyleGAN2, StyleGAN2Config
from pyfastgan.gan.stylegan2_networks import StyleDiscriminator, StyleGenerator
from pyfastgan.gan.systems import PRESETS, preset
from pyfastgan.gan.trainer import GAN, load, train
from pyfastgan.gan.translation import Translator
from pyfastgan.gan.translation_networks import PatchDiscriminator, ResNetGenerator, UNet
from pyfastgan.gan.veegan import VEEGAN, VEEGANConfig

__all__ = [
    "GAN",
    "GMMN",
    "OBJECTIVES",
    "PENALTIES",
    "POINT_PRESETS",
    "PRESETS",
    "VEEGAN",
    "AdversarialStep",
    "BigGANDiscriminator",
    "BigGANGenerator",
    "ConditionalConfig",
    "ConditionalDiscriminator",
    "ConditionalGAN",
    "ConditionalGenerator",
    "CriticStep",
    "CycleGAN",
    "CycleGANConfig",
    "Discriminator",
    "GANConfig",
    "GMMNConfig",
    "Generator",
    "GrowingDiscriminator",
    "GrowingGenerator",
    "ImageHistory",
    "MLPCritic",
    "MLPGenerator",
    "Objective",
    "PatchDiscriminator",
    "Penalty",
    "Pix2Pix",
    "Pix2PixConfig",
    "ProgressiveConfig",
    "ProgressiveGAN",
    "ResNetGenerator",
    "ResidualCritic",
    "ResidualGenerator",
    "SelfAttention",
    "StyleDiscriminator",
    "StyleGAN2",
    "StyleGAN2Config",
    "StyleGenerator",
    "Term",
    "Translator",
    "UNet",
    "VEEGANConfig",
    "adversarial_step",
    "arithmetic",
    "class_latents",
    "critic_step",
    "diff_augment",
    "discriminator_loss",
    "discriminator_slopes",
    "draw_normal",
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
