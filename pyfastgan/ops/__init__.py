"""The fast ops: one file each, registered in one list, served by the fastest backend that can.

A line here brings an op in: its file registers it as it is imported, and its public function takes
the file's name.
"""

from ._glow_step import glow_step, glow_steps
from ._sample_discretized_mix_logistic import sample_discretized_mix_logistic
from .affine_coupling import affine_coupling
from .bernoulli_nll import bernoulli_nll
from .bias_act import bias_act
from .conv_transpose_act import conv_transpose_act
from .denoise_step import denoise_step
from .diffuse import diffuse
from .discretized_mix_logistic import discretized_mix_logistic
from .edge_conv import edge_conv, edge_conv_transpose
from .gaussian_nll import gaussian_nll
from .gaussian_vlb import gaussian_vlb
from .mmd import mmd
from .nearest_code import nearest_code
from .norm_act import norm_act
from .random import random_normal, random_uniform, random_words
from .rational_quadratic_spline import rational_quadratic_spline
from .reparameterize import reparameterize
from .upfirdn2d import upfirdn2d

__all__ = [
    "affine_coupling",
    "bernoulli_nll",
    "bias_act",
    "conv_transpose_act",
    "denoise_step",
    "diffuse",
    "discretized_mix_logistic",
    "edge_conv",
    "edge_conv_transpose",
    "gaussian_nll",
    "gaussian_vlb",
    "glow_step",
    "glow_steps",
    "mmd",
    "nearest_code",
    "norm_act",
    "random_normal",
    "random_uniform",
    "random_words",
    "rational_quadratic_spline",
    "reparameterize",
    "sample_discretized_mix_logistic",
    "upfirdn2d",
]
