"""Draws docs/images/sampler-orders.svg: the error of each sampler over its number of network calls, on a mixture of
Gaussians whose best denoiser is known (sigma 20 to 0.02), against a solution of order 8.

    python benchmarks/sampler_orders.py
"""

import sys
from pathlib import Path

import torch
from matplotlib import rc_context

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "diffusion"))

from mixture import HIGH, LOW, denoise, solution  # noqa: E402

from pyfastgan.diffusion import (  # noqa: E402
    DPMSolverPP,
    Euler,
    FlowMatching,
    Heun,
    NoiseSchedule,
    UniPC,
)
from pyfastgan.training.files import atomic  # noqa: E402
from pyfastgan.training.grids import new_figure  # noqa: E402

ONE = torch.tensor(1.0, dtype=torch.float64)
STEPS = (10, 20, 40, 80, 160, 320, 640)


def on_sigmas(kind, **options):
    def make(n):
        return kind(NoiseSchedule.karras(n + 1, LOW, HIGH, prediction="x0"), final=None, **options)

    return make, lambda x, time: denoise(x, ONE, time[0])


def on_path(method):
    def make(n):
        t = torch.linspace(LOW / (1 + LOW), HIGH / (1 + HIGH), n + 1, dtype=torch.float64)
        schedule = NoiseSchedule("flow", (1 - t) ** 2, t**2, t, prediction="flow")
        return FlowMatching(schedule, final=None, method=method)

    return make, lambda x, time: (x - denoise(x, 1 - time[0], time[0])) / time[0]


SAMPLERS = {
    "Euler, DDIM": (on_sigmas(Euler), "-"),
    "Heun": (on_sigmas(Heun), "-"),
    "DPM-Solver++ 2M": (on_sigmas(DPMSolverPP, order=2), "-"),
    "DPM-Solver++ 3M, exact": (on_sigmas(DPMSolverPP, order=3), "-"),
    "DPM-Solver++ 3M, compat": (on_sigmas(DPMSolverPP, order=3, third="compat"), "--"),
    "UniPC 2": (on_sigmas(UniPC, order=2, lower_order_final=False), "-"),
    "flow matching, midpoint": (on_path("midpoint"), ":"),
    "flow matching, RK4": (on_path("rk4"), ":"),
}


def main() -> None:
    x = HIGH * torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).double()
    end = solution(x)
    figure = new_figure(7.0, 4.5)
    axes = figure.add_subplot()
    for name, ((make, network), line) in SAMPLERS.items():
        calls, errors = [], []
        for n in STEPS:
            sampler = make(n)
            y = sampler.sample(network, x * sampler.alphas[0]) / sampler.alphas[sampler.steps]
            calls.append(len(sampler.stages))
            errors.append((y - end).norm(dim=1).mean().item())
        slope = torch.tensor(errors[-2] / errors[-1]).log2().item()
        print(f"{name:28} {slope:5.2f}  " + " ".join(f"{error:.1e}" for error in errors))
        axes.loglog(calls, errors, line, marker="o", ms=3, lw=1.2, label=f"{name} ({slope:.2f})")
    axes.set_xlabel("network calls")
    axes.set_ylabel("mean distance from the solution")
    axes.grid(alpha=0.3)
    axes.legend(
        fontsize="small", title="slope over the last doubling of steps", title_fontsize="small"
    )
    figure.tight_layout()
    # Text as text: a quarter of the size.
    with (
        rc_context({"svg.fonttype": "none"}),
        atomic(ROOT / "docs" / "images" / "sampler-orders.svg") as temporary,
    ):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
