"""Autoregressive models: PixelCNN, gated PixelCNN with attention, sampling that caches, and their
trainer."""

from pyfastgan.autoregressive.codes import Codes, load_codes
from pyfastgan.autoregressive.gated import GatedPixelCNN
from pyfastgan.autoregressive.likelihood import LogisticMixture, Softmax, bits_per_dim
from pyfastgan.autoregressive.masked import MaskedConv2d, PixelCNN
from pyfastgan.autoregressive.model import PixelModel
from pyfastgan.autoregressive.trainer import PRESETS, PixelCNNConfig, PixelCNNSystem, load, train
from pyfastgan.autoregressive.two_levels import TwoLevelPrior

__all__ = [
    "PRESETS",
    "Codes",
    "GatedPixelCNN",
    "LogisticMixture",
    "MaskedConv2d",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelCNNSystem",
    "PixelModel",
    "Softmax",
    "TwoLevelPrior",
    "bits_per_dim",
    "load",
    "load_codes",
    "train",
]
