"""The networks of a `GANConfig`: those of points, of DCGAN and of residual blocks."""

from __future__ import annotations

from torch import nn

from pyfastgan.gan.config import GANConfig
from pyfastgan.gan.dcgan import Discriminator, Generator
from pyfastgan.gan.mlp import MLPCritic, MLPGenerator
from pyfastgan.gan.residual import ResidualCritic, ResidualGenerator


def make_generator(config: GANConfig) -> nn.Module:
    if config.architecture == "mlp":
        return MLPGenerator(
            config.latent_dim, width=config.width, hidden_layers=config.hidden_layers
        )
    size, channels = config.image_shape
    network = ResidualGenerator if config.architecture == "residual" else Generator
    return network(size, channels=channels, width=config.width, latent_dim=config.latent_dim)


def make_discriminator(config: GANConfig) -> nn.Module:
    network = _judge(config)
    if config.spectral_norm:
        for layer in list(network.modules()):
            weight = getattr(layer, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.ndim > 1:
                if not weight.any():  # the last layers of residual branches, of no direction
                    nn.init.orthogonal_(weight)
                nn.utils.parametrizations.spectral_norm(layer)
    return network


def _judge(config: GANConfig) -> nn.Module:
    if config.architecture == "mlp":
        return MLPCritic(2 * config.pack, width=config.width, hidden_layers=config.hidden_layers)
    size, channels = config.image_shape
    channels *= config.pack
    if config.architecture == "residual":
        return ResidualCritic(size, channels=channels, width=config.width)
    norm = "batch" if config.discriminator_norm else None
    return Discriminator(size, channels=channels, width=config.width, norm=norm)
