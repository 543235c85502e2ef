"""The fast ops: one file each, registered in one list, served by the fastest backend that can.

A line here brings an op in: its file registers it as it is imported, and its public function takes
the file's name.
"""

from .bias_act import bias_act
from .conv_transpose_act import conv_transpose_act
from .edge_conv import edge_conv, edge_conv_transpose
from .norm_act import norm_act
from .random import random_normal, random_uniform, random_words

__all__ = [
    "bias_act",
    "conv_transpose_act",
    "edge_conv",
    "edge_conv_transpose",
    "norm_act",
    "random_normal",
    "random_uniform",
    "random_words",
]
