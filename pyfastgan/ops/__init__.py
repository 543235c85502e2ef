"""The fast ops: one file each, registered in one list, served by the fastest backend that can.

A line here brings an op in: its file registers it as it is imported, and its public function takes
the file's name.
"""

from ._glow_step import glow_step, glow_steps
from .affine_coupling import affine_coupling
from .bias_act import bias_act
from .random import random_normal, random_uniform, random_words
from .rational_quadratic_spline import rational_quadratic_spline

__all__ = [
    "affine_coupling",
    "bias_act",
    "glow_step",
    "glow_steps",
    "random_normal",
    "random_uniform",
    "random_words",
    "rational_quadratic_spline",
]
