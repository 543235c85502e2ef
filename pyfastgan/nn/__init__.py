"""Fast layers: `torch.nn.Module`s, thin over `pyfastgan.ops`, with the names and the state of what
they replace."""

from .bias_act import BiasAct
from .blocks import ConvBlock, ConvTransposeBlock, FusedSequential
from .coupling import AffineCoupling, SplineCoupling
from .dequantize import Squeeze, UniformDequantize, VariationalDequantize, split
from .glow import ActNorm, GlowStep, InvertibleConv1x1, run_glow_steps
from .minibatch_std import MinibatchStd
from .modulated_conv import ModulatedConv2d
from .norm_act import NormAct
from .vector_quantizer import Quantized, VectorQuantizer

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "BiasAct",
    "ConvBlock",
    "ConvTransposeBlock",
    "FusedSequential",
    "GlowStep",
    "InvertibleConv1x1",
    "MinibatchStd",
    "ModulatedConv2d",
    "NormAct",
    "Quantized",
    "SplineCoupling",
    "Squeeze",
    "UniformDequantize",
    "VariationalDequantize",
    "VectorQuantizer",
    "run_glow_steps",
    "split",
]
