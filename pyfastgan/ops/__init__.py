"""The fast ops: one file each, registered in one list, served by the fastest backend that can.

A line here brings an op in: its file registers it as it is imported, and its public function takes
the file's name.
"""

from .bernoulli_nll import bernoulli_nll
from .bias_act import bias_act
from .discretized_mix_logistic import (
    discretized_mix_logistic,
    sample_discretized_mix_logistic,
)
from .gaussian_nll import gaussian_nll
from .nearest_code import nearest_code
from .random import random_normal, random_uniform, random_words
from .reparameterize import reparameterize

__all__ = [
    "bernoulli_nll",
    "bias_act",
    "discretized_mix_logistic",
    "gaussian_nll",
    "nearest_code",
    "random_normal",
    "random_uniform",
    "random_words",
    "reparameterize",
    "sample_discretized_mix_logistic",
]
