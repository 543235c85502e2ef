"""Fast layers: `torch.nn.Module`s, thin over `pyfastgan.ops`, with the names and the state of what
they replace."""

from .bias_act import BiasAct
from .blocks import ConvBlock, ConvTransposeBlock, FusedSequential
from .coupling import AffineCoupling, SplineCoupling
from .dequantize import Squeeze, UniformDequantize, VariationalDequantize, split
from .glow import ActNorm, GlowStep, InvertibleConv1x1, run_glow_steps

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "BiasAct",
    "ConvBlock",
    "ConvTransposeBlock",
    "FusedSequential",
    "GlowStep",
    "InvertibleConv1x1",
    "SplineCoupling",
    "Squeeze",
    "UniformDequantize",
    "VariationalDequantize",
    "run_glow_steps",
    "split",
]
