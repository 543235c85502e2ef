"""Fast layers: `torch.nn.Module`s, thin over `pyfastgan.ops`, with the names and the state of what
they replace."""

from .bias_act import BiasAct
from .blocks import ConvBlock, ConvTransposeBlock, FusedSequential
from .vector_quantizer import Quantized, VectorQuantizer

__all__ = [
    "BiasAct",
    "ConvBlock",
    "ConvTransposeBlock",
    "FusedSequential",
    "Quantized",
    "VectorQuantizer",
]
