"""diffusers: `step` and `add_noise` of the DDPM, DDIM, Euler, DPM-Solver++ (multistep) and flow-matching schedulers."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .schedulers.ddim import DDIMScheduler
from .schedulers.ddpm import DEVIATIONS, DDPMScheduler
from .schedulers.dpm_solver import DPMSolverMultistepScheduler
from .schedulers.euler import EulerDiscreteScheduler
from .schedulers.flow_matching import FlowMatchEulerDiscreteScheduler
from .swap import Library, Swap


def _ddpm_reason(part: Any) -> str | None:
    known = part.variance_type in DEVIATIONS
    return None if known else f"its variance is {part.variance_type!r}"


def _solver_reason(part: Any) -> str | None:
    kind = part.config.algorithm_type
    known = kind in ("dpmsolver++", "sde-dpmsolver++")
    return None if known else f"its algorithm is {kind!r}"


_OPS = "denoise_step, diffuse"

LIBRARY = Library(
    swaps={
        diffusers.DDPMScheduler: Swap(DDPMScheduler, _OPS, _ddpm_reason),
        diffusers.DDIMScheduler: Swap(DDIMScheduler, _OPS),
        diffusers.EulerDiscreteScheduler: Swap(EulerDiscreteScheduler, _OPS),
        diffusers.FlowMatchEulerDiscreteScheduler: Swap(FlowMatchEulerDiscreteScheduler, _OPS),
        diffusers.DPMSolverMultistepScheduler: Swap(
            DPMSolverMultistepScheduler, _OPS, _solver_reason
        ),
    },
    named=(SchedulerMixin,),
)
