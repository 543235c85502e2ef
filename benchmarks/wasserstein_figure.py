"""Draws docs/images/wasserstein-shift.svg: figure 1 of Arjovsky et al. 2017, "Wasserstein GAN".

    python benchmarks/wasserstein_figure.py [FILE]

Two lines side by side, a shift apart: the Wasserstein-1 distance is the shift, and the
Jensen-Shannon divergence is log 2 wherever they do not coincide. Both are minima of the losses of
`pyfastgan.gan.OBJECTIVES`, found with the best critic: slope 1, and logits of +-40.
"""

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from pyfastgan.gan import discriminator_loss

DEFAULT = Path(__file__).resolve().parent.parent / "docs" / "images" / "wasserstein-shift.svg"
plt.rcParams |= {"svg.hashsalt": "pyfastgan", "svg.fonttype": "none", "font.size": 9}


def distances(shift):
    """W1 and the Jensen-Shannon divergence of the points (0, u) and (shift, u)."""
    side = math.copysign(1.0, -shift)
    x = torch.zeros(8, dtype=torch.float64)
    wasserstein = -discriminator_loss("wgan", side * x, side * (x + shift))
    logits = x + (40.0 if shift else 0.0)
    twice = -discriminator_loss("jensen-shannon", logits, -logits)
    return wasserstein.item(), twice.item() / 2


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    shifts = [k / 50 for k in range(-50, 51)]
    found = [distances(shift) for shift in shifts]
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.4), sharex=True)
    names = ("Wasserstein-1 distance", "Jensen-Shannon divergence")
    for axes, name, values in zip(panels, names, zip(*found, strict=True), strict=True):
        axes.plot(shifts, values, ".", ms=3, color="#1b6ca8")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("shift")
        axes.set_ylim(-0.05, 1.05)
    panels[1].axhline(math.log(2), lw=0.5, color="#7a7a7a")
    panels[1].text(-0.95, math.log(2) + 0.04, "log 2", color="#7a7a7a")
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(out)


if __name__ == "__main__":
    main()
