"""One seed, any batch: noise is a function of (seed, sample, element), whatever the batch, the threads or the device.

python examples/same_noise.py [STEPS] [PICTURE]
"""

import sys
from pathlib import Path

import torch

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "same_noise.png")

whole = pf.ops.random_normal((16, 1, 32, 32), seed=7)
parts = [  # as `steps` machines would make it, each a part of the batch
    pf.ops.random_normal((16 // steps, 1, 32, 32), seed=7, sample_offset=k * (16 // steps))
    for k in range(steps)
]
assert torch.equal(whole[: 16 // steps * steps], torch.cat(parts))
other = pf.ops.random_normal((16, 1, 32, 32), seed=7, stream=1)  # another use of the same seed
assert not torch.equal(whole, other)
pf.training.save_samples(torch.cat((whole, other)) / 3, picture)
print(picture)
