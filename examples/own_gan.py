"""A GAN of your own: plain torch modules and your own loop, with critic loss and R1 penalty in one fused step.

python examples/own_gan.py [STEPS] [PICTURE]
"""

import sys
from pathlib import Path

import torch
from torch import nn

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "own_gan.png")

torch.manual_seed(0)
digits = pf.data.load("digits", size=16).tensors[0]  # (1797, 1, 16, 16) in [-1, 1]
generator = nn.Sequential(
    pf.nn.ConvTransposeBlock(64, 128, 4, norm="batch"),  # 1x1 -> 4x4
    pf.nn.ConvTransposeBlock(128, 64, 4, 2, 1, norm="batch"),
    pf.nn.ConvTransposeBlock(64, 1, 4, 2, 1, act="tanh"),
)
critic = nn.Sequential(
    nn.Conv2d(1, 64, 4, 2, 1),
    nn.LeakyReLU(0.2),
    nn.Conv2d(64, 128, 4, 2, 1),
    nn.LeakyReLU(0.2),
    nn.Flatten(),
    nn.Linear(128 * 16, 1),
)
of_generator = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.99))
of_critic = torch.optim.Adam(critic.parameters(), 2e-4, (0.5, 0.99))

for step in range(steps):
    real = digits[torch.randint(len(digits), (64,))]
    z = pf.ops.random_normal((64, 64, 1, 1), seed=step)  # the same numbers on every machine

    of_critic.zero_grad()
    done = pf.gan.critic_step(
        critic, real, generator(z).detach(), loss="non-saturating", penalty="r1", weight=1.0
    )
    of_critic.step()

    of_generator.zero_grad()
    loss = nn.functional.softplus(-critic(generator(z))).mean()
    loss.backward()
    of_generator.step()
    if step % 100 == 0:
        print(
            f"{step:5d}  critic {done.loss:.3f}  penalty {done.penalty:.4f}  generator {loss:.3f}"
        )

print(done.plan)
with torch.no_grad():
    samples = generator(pf.ops.random_normal((64, 64, 1, 1), seed=steps))
pf.training.save_samples(samples, picture)
print(picture)
