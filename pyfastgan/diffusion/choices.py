"""Samplers by name, as the command line and configurations have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyfastgan._names import check_choice
from pyfastgan.diffusion.process import Levels, Path, Process, Sigmas
from pyfastgan.diffusion.sampler import Sampler
from pyfastgan.diffusion.samplers import DDIM, DDPM, EDM, Euler, Heun
from pyfastgan.diffusion.solvers import DPMSolverPP, FlowMatching, UniPC
from pyfastgan.training.config import check_number

_ANY: dict[str, tuple[Callable[..., Sampler], dict[str, Any]]] = {
    "ddpm": (DDPM, {}),
    "ddim": (DDIM, {}),
    "euler": (Euler, {}),
    "heun": (Heun, {}),
    "dpmpp-1": (DPMSolverPP, {"order": 1}),
    "dpmpp-2m": (DPMSolverPP, {"order": 2}),
    "dpmpp-3m": (DPMSolverPP, {"order": 3}),
    "dpmpp-3m-compat": (DPMSolverPP, {"order": 3, "third": "compat"}),
    "dpmpp-2s": (DPMSolverPP, {"order": 2, "variant": "singlestep"}),
    "dpmpp-3s": (DPMSolverPP, {"order": 3, "variant": "singlestep"}),
    "dpmpp-2m-sde": (DPMSolverPP, {"order": 2, "stochastic": True}),
    "unipc": (UniPC, {}),
}
_FLOW: dict[str, tuple[Callable[..., Sampler], dict[str, Any]]] = {
    name: (FlowMatching, {"method": name}) for name in ("euler", "midpoint", "heun", "rk4")
}
SAMPLERS = (*_ANY, "edm", "midpoint", "rk4")
# What samples are drawn by where nobody says: a name and steps.
_DEFAULTS: dict[type[Process], tuple[str, int]] = {
    Levels: ("dpmpp-2m", 25),
    Sigmas: ("edm", 18),
    Path: ("midpoint", 20),
}
# Those whose variables have ln(alpha / sigma) or sigma / alpha in them, which must be finite.
_FINITE = (DPMSolverPP, UniPC, Heun)


def make_sampler(
    process: Process,
    name: str | None = None,
    steps: int | None = None,
    *,
    clip: float | None = None,
    learned_variance: bool = False,
    **options: Any,
) -> Sampler:
    """The sampler of that name over the levels of a process.

    Args:
        process: What the network was trained on.
        name: One of `SAMPLERS`; by default dpmpp-2m, for EDM edm, for flow matching midpoint.
        steps: From level to level; by default 25, 18 or 20.
        clip: The bound on x_0, of a process with levels.
        learned_variance: Whether DDPM's noise is as the network says.
        options: Of the sampler: `eta` of ddim, `churn` of edm.

    Raises:
        ValueError: An unknown sampler, one that is not for this process, or steps out of range.
    """
    default, default_steps = _DEFAULTS[type(process)]
    name, steps = name or default, default_steps if steps is None else steps
    check_choice("sampler", name, SAMPLERS)
    check_number("steps", steps, int, at_least=1)
    kind: Callable[..., Sampler] = EDM
    settings: dict[str, Any] = {}
    if name == "edm":
        if not isinstance(process, Sigmas):
            raise ValueError("sampler must not be 'edm': the model was not trained on sigmas")
    elif isinstance(process, Path) and name in _FLOW:
        kind, settings = _FLOW[name]
    elif name in _ANY:
        kind, settings = _ANY[name]
    else:
        raise ValueError(
            f"sampler must not be {name!r}: the model was not trained by flow matching"
        )
    settings = {**settings, **options}
    if learned_variance and kind is DDPM:
        settings["variance"] = "learned"
    if isinstance(process, Levels):
        settings["clip"] = clip
    try:
        return kind(*process.grid(steps, kind in _FINITE), **settings)
    except TypeError:
        raise ValueError(
            f"sampler {name!r} does not take {', '.join(options) or 'these options'}"
        ) from None
