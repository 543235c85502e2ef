"""Variational autoencoders, autoencoders with a codebook or with neither, sparse coding: bounds, networks,
and their trainers."""

from pyfastgan.vae.autoencoder import Autoencoder, linear_autoencoder
from pyfastgan.vae.autoencoder_system import AutoencoderSystem
from pyfastgan.vae.config import AutoencoderConfig, SparseCodingConfig, VAEConfig, VQConfig
from pyfastgan.vae.model import VAE, importance_bound
from pyfastgan.vae.pictures import manifold, traversals
from pyfastgan.vae.sparse_coding import SparseCoding, sparse_codes
from pyfastgan.vae.system import VAESystem
from pyfastgan.vae.trainer import PRESETS, decode, load, train
from pyfastgan.vae.vq import VQVAE
from pyfastgan.vae.vq2 import VQVAE2
from pyfastgan.vae.vq_system import VQSystem

__all__ = [
    "PRESETS",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderSystem",
    "SparseCoding",
    "SparseCodingConfig",
    "VAEConfig",
    "VAESystem",
    "VQConfig",
    "VQSystem",
    "decode",
    "importance_bound",
    "linear_autoencoder",
    "load",
    "manifold",
    "sparse_codes",
    "train",
    "traversals",
]
