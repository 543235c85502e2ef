"""A WGAN with a gradient penalty on eight Gaussians in the plane: 256 training points a step, all modes found.

python examples/wgan_points.py [STEPS] [PICTURE]
"""

import sys
import tempfile
from pathlib import Path

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "wgan_points.png")

run = pf.gan.train("wgan-gp", data="8gaussians", out=tempfile.mkdtemp() + "/run", steps=steps)
points = pf.gan.load(run).sample(2000, seed=1)
pf.training.save_samples(points, picture)
print(picture)
