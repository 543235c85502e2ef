"""A DCGAN on real handwritten digits, a walk between two of its samples, and how far they are from held-out digits.

python examples/dcgan_digits.py [STEPS] [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import torch

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "dcgan_digits.png")

run = pf.gan.train("dcgan", data="digits", out=tempfile.mkdtemp() + "/run", steps=steps)
generator = pf.gan.load(run)

_, held_out, _ = pf.metrics.halves("digits", 16)
extractor = pf.metrics.extractor_for("digits", 16)
print(
    pf.metrics.evaluate(generator.sample(500, seed=1), held_out, extractor, metrics=["fid", "kid"])
)

start, end = pf.ops.random_normal((2, 1, 100), seed=3)
with torch.no_grad():
    walk = generator(pf.gan.interpolate(start, end, 10)[0])
pf.training.save_samples(torch.cat((generator.sample(90, seed=2), walk)), picture)
print(picture)
