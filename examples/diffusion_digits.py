"""Diffusion on digits: trained on noise, 20 steps of a third-order solver, the same image for a seed in any batch.

python examples/diffusion_digits.py [STEPS] [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import torch

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "diffusion_digits.png")

run = pf.diffusion.train("ddpm", data="digits", out=tempfile.mkdtemp() + "/run", steps=steps)
model = pf.diffusion.load(run)
seeds = torch.arange(64)
images = model.sample(64, seeds, sampler="dpmpp-3m", steps=20)
alone = model.sample(1, seeds[5:6], sampler="dpmpp-3m", steps=20)
print(f"image 5 in a batch and alone differ by {(images[5] - alone[0]).abs().max():.1e}")
pf.training.save_samples(images, picture)
print(picture)
