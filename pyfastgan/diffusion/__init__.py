"""Diffusion and flow matching: noise schedules, predictions, samplers, networks, likelihoods and the trainer."""

from pyfastgan.diffusion import command
from pyfastgan.diffusion.choices import SAMPLERS, make_sampler
from pyfastgan.diffusion.config import PRESETS, DiffusionConfig, preset
from pyfastgan.diffusion.coupling import optimal_assignment
from pyfastgan.diffusion.grid import Grid
from pyfastgan.diffusion.guidance import guide
from pyfastgan.diffusion.inpainting import inpaint
from pyfastgan.diffusion.likelihood import bits_per_dim, flow_nll, variational_bound
from pyfastgan.diffusion.mlp import MLP
from pyfastgan.diffusion.model import DiffusionModel
from pyfastgan.diffusion.power_average import reconstruct
from pyfastgan.diffusion.prediction import (
    PREDICTIONS,
    SIGMA_DATA,
    edm_input_scale,
    edm_time,
    target,
)
from pyfastgan.diffusion.process import Levels, Path, Sigmas, make_process
from pyfastgan.diffusion.sampler import Sampler, Stage
from pyfastgan.diffusion.samplers import DDIM, DDPM, EDM, Euler, Heun
from pyfastgan.diffusion.schedule import NoiseSchedule
from pyfastgan.diffusion.solvers import DPMSolverPP, FlowMatching, UniPC
from pyfastgan.diffusion.system import DiffusionSystem
from pyfastgan.diffusion.trainer import load, train
from pyfastgan.diffusion.unet import UNet

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "MLP",
    "PREDICTIONS",
    "PRESETS",
    "SAMPLERS",
    "SIGMA_DATA",
    "DPMSolverPP",
    "DiffusionConfig",
    "DiffusionModel",
    "DiffusionSystem",
    "Euler",
    "FlowMatching",
    "Grid",
    "Heun",
    "Levels",
    "NoiseSchedule",
    "Path",
    "Sampler",
    "Sigmas",
    "Stage",
    "UNet",
    "UniPC",
    "bits_per_dim",
    "command",
    "edm_input_scale",
    "edm_time",
    "flow_nll",
    "guide",
    "inpaint",
    "load",
    "make_process",
    "make_sampler",
    "optimal_assignment",
    "preset",
    "reconstruct",
    "target",
    "train",
    "variational_bound",
]
