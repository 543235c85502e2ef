"""A VAE with two latent numbers on digits: its test likelihood, and the plane of everything that it can draw.

python examples/vae_manifold.py [STEPS] [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "vae_manifold.png")

folder = tempfile.mkdtemp() + "/run"
run = pf.vae.train("vae", data="digits", out=folder, steps=steps, latent_dim=2)
model = pf.vae.load(run)
test = model.observe(pf.data.load("digits", split="test").tensors[0], seed=0)
print(f"test NLL {model.nll(test, samples=100).mean():.2f} nats")
pf.training.save_png(pf.vae.manifold(model), picture)
print(picture)
