"""A neural spline flow on two moons: its likelihood beside the entropy, which is known, and its density over the plane.

python examples/flow_moons.py [STEPS] [PICTURE]
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "flow_moons.png")

run = pf.flow.train("nsf", data="moons", out=tempfile.mkdtemp() + "/run", steps=steps)
model = pf.flow.load(run)
points = pf.data.load("moons", count=10_000, seed=5).tensors[0]
nll = -model.log_prob(points).mean()
print(f"{nll:.4f} nats a point; the entropy is {pf.data.TOYS['moons'].entropy:.4f}")
shutil.copy(run.path / "density.png", picture)
print(picture)
