"""Variational autoencoders: bounds on the likelihood, networks, and their trainer."""

from pyfastgan.vae.config import VAEConfig
from pyfastgan.vae.model import VAE, importance_bound
from pyfastgan.vae.system import VAESystem, manifold, reconstructions, traversals
from pyfastgan.vae.trainer import PRESETS, load, train

__all__ = [
    "PRESETS",
    "VAE",
    "VAEConfig",
    "VAESystem",
    "importance_bound",
    "load",
    "manifold",
    "reconstructions",
    "train",
    "traversals",
]
