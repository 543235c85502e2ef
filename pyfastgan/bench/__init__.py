"""Measures the installed ops from the rows of the registry: `pyfastgan bench`.

The contestants of a row take turns in one process, so that what disturbs the machine disturbs all
of them alike, and their medians are compared. Beside ours and eager PyTorch stand `torch.compile`
of the eager one, the time of everybody's first call, and the physical limit: the bytes that must
move over the copy bandwidth for buffers of that size, or the operations over the rate of a matrix
product, whichever takes longer. Both rates are measured between the turns of the contestants.

A noisy machine gets no report, and an op whose values are not its reference's gets no speed-up.

What a row may cost is bounded: its turns share a fixed time, in which a slow contestant has fewer of
them, and compiling has a limit of its own, which shrinks as a deadline for all rows comes nearer.
"""

from pyfastgan.bench.command import main
from pyfastgan.bench.machine import NoisyMachine, hardware, noise, versions
from pyfastgan.bench.measure import Bench, disagreement
from pyfastgan.bench.table import HEADER, duration, failures, line
