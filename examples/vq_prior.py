"""New photographs in two stages: a VQ-VAE turns 32x32 crops into 8x8 codes, a PixelCNN learns the codes.

python examples/vq_prior.py [STEPS] [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "vq_prior.png")

folder = tempfile.mkdtemp()
run = pf.vae.train("vq-vae", data="photos", out=f"{folder}/codes", steps=steps)
prior = pf.autoregressive.train("pixelcnn", codes=str(run.path), out=f"{folder}/prior", steps=steps)
model = pf.autoregressive.load(prior, decode=lambda codes: pf.vae.decode(run, codes))
pf.training.save_samples(model.sample(64, seed=1), picture)
print(picture)
