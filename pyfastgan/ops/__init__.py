"""The fast ops: one file each, registered in one list, served by the fastest backend that can.

A line here brings an op in: its file registers it as it is imported, and its public function takes
the file's name.
"""

from .bias_act import bias_act
from .denoise_step import denoise_step
from .diffuse import diffuse
from .gaussian_vlb import gaussian_vlb
from .random import random_normal, random_uniform, random_words

__all__ = [
    "bias_act",
    "denoise_step",
    "diffuse",
    "gaussian_vlb",
    "random_normal",
    "random_uniform",
    "random_words",
]
