"""Diffusion and flow matching: noise schedules, predictions and samplers."""

from pyfastgan.diffusion.prediction import (
    PREDICTIONS,
    SIGMA_DATA,
    edm_input_scale,
    edm_time,
    target,
)
from pyfastgan.diffusion.samplers import DDIM, DDPM, EDM, Euler, Heun, Sampler, Stage
from pyfastgan.diffusion.schedule import Grid, NoiseSchedule
from pyfastgan.diffusion.solvers import DPMSolverPP, FlowMatching, UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "PREDICTIONS",
    "SIGMA_DATA",
    "DPMSolverPP",
    "Euler",
    "FlowMatching",
    "Grid",
    "Heun",
    "NoiseSchedule",
    "Sampler",
    "Stage",
    "UniPC",
    "edm_input_scale",
    "edm_time",
    "target",
]
