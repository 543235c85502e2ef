"""A gated PixelCNN on digits: exact bits per dimension, and sampling that computes each pixel once.

python examples/pixelcnn_digits.py [STEPS] [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "pixelcnn_digits.png")

run = pf.autoregressive.train(
    "pixelcnn", data="digits", out=tempfile.mkdtemp() + "/run", steps=steps
)
model = pf.autoregressive.load(run)
print(f"{model.bits_per_dim(pf.data.load('digits', split='test')):.3f} bits/dim on the test digits")
pf.training.save_samples(model.sample(64, seed=1), picture)
print(picture)
