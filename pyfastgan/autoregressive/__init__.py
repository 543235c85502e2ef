"""Autoregressive models: PixelCNN, gated PixelCNN with attention, and sampling that caches."""

from pyfastgan.autoregressive.gated import GatedPixelCNN
from pyfastgan.autoregressive.likelihood import LogisticMixture, Softmax, bits_per_dim
from pyfastgan.autoregressive.masked import MaskedConv2d, PixelCNN

__all__ = [
    "GatedPixelCNN",
    "LogisticMixture",
    "MaskedConv2d",
    "PixelCNN",
    "Softmax",
    "bits_per_dim",
]
