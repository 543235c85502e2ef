"""`adversarial_step` against two players' autograd, its passes counted, and over two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import critics
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyfastgan.gan import (
    adversarial_step,
    critic_step,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

COUNT = 4


def players(kind: str = "leaky relu") -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    critic = critics.make(kind)
    generator = nn.Sequential(
        nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 192), nn.Unflatten(1, critics.SHAPE)
    ).double()
    real = torch.randn(COUNT, *critics.SHAPE, dtype=torch.float64)
    return generator, critic, real, torch.randn(COUNT, 5, dtype=torch.float64)


def expected(
    generator: nn.Module, critic: nn.Module, real: Tensor, z: Tensor, loss: str, penalty: str | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Both players' gradients at the same weights."""
    made = generator(z)
    total = discriminator_loss(loss, critic(real).flatten(), critic(made.detach()).flatten())
    if penalty is not None:
        total = total + gradient_penalty(critic, real, made.detach(), penalty=penalty, seed=3)
    of_critic = torch.autograd.grad(total, list(critic.parameters()))
    value = generator_loss(loss, critic(made).flatten(), critic(real).flatten())
    return list(of_critic), list(torch.autograd.grad(value, list(generator.parameters())))


def same(network: nn.Module, gradients: list[Tensor]) -> None:
    largest = max(float(g.norm()) for g in gradients)
    for p, g in zip(network.parameters(), gradients, strict=True):
        assert float((p.grad - g).norm()) < 1e-9 * max(float(g.norm()), 1e-4 * largest)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("kind", ["leaky relu", "silu", "batch norm, fixed"])
@pytest.mark.parametrize(
    ("loss", "penalty"),
    [
        ("relativistic", "r1r2"),
        ("non-saturating", "r1"),
        ("wgan", "wgan-gp"),
        ("hinge", None),
        ("squared-hellinger", "r1"),
        ("total-variation", None),
    ],
)
def test_both_players_gradients(update: str, kind: str, loss: str, penalty: str | None) -> None:
    generator, critic, real, z = players(kind)
    of_critic, of_generator = expected(generator, critic, real, z, loss, penalty)
    args: dict[str, Any] = {"loss": loss, "penalty": penalty, "update": update, "seed": 3}
    if update == "alternating":

        def move() -> None:
            nonlocal of_generator
            same(critic, of_critic)
            with torch.no_grad():
                for p in critic.parameters():
                    p -= 0.1 * p.grad
            of_generator = expected(generator, critic, real, z, loss, None)[1]

        args["critic_update"] = move
    step = adversarial_step(generator, critic, real, z, **args)
    assert step.plan == "fused"
    assert bool(step.finite)
    same(critic, of_critic)
    same(generator, of_generator)
    with torch.no_grad():
        torch.testing.assert_close(step.fake, generator(z))


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_a_critic_that_falls_back(update: str) -> None:
    torch.manual_seed(0)
    generator, _, real, z = players()
    critic = critics.plain(norm=nn.BatchNorm2d).double()
    of_critic, of_generator = expected(generator, critic, real, z, "relativistic", "r1")
    move = (lambda: None) if update == "alternating" else None
    with pytest.warns(UserWarning, match="BatchNorm2d"):
        step = adversarial_step(
            generator, critic, real, z,
            loss="relativistic", penalty="r1", update=update, critic_update=move,
        )  # fmt: skip
    assert "BatchNorm2d" in step.plan
    same(critic, of_critic)
    same(generator, of_generator)
    assert all(p.requires_grad for p in critic.parameters())


@pytest.mark.parametrize(
    ("update", "penalty", "passes"),
    [
        ("simultaneous", None, 6),
        ("simultaneous", "r1", 7),
        ("simultaneous", "r1r2", 8),
        ("simultaneous", "wgan-gp", 10),
        ("alternating", None, 8),
        ("alternating", "r1", 9),
        ("alternating", "r1r2", 10),
    ],
)
def test_convolution_passes(update: str, penalty: str | None, passes: int) -> None:
    """Through the 3 x 3 layer, in batches of COUNT: the table of docs/gradient-penalties.md."""
    generator, critic, real, z = players()
    total = 0.0

    class Passes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal total
            if "convolution" in func.name():
                back = "backward" in func.name()
                if (args[2] if back else args[1]).shape[2:] == (3, 3):
                    total += len(args[0]) / COUNT * (sum(args[-1][:2]) if back else 1)
            return func(*args, **(kwargs or {}))

    critic_step(critic, real, real, loss="hinge")  # planning convolves shapes
    move = (lambda: None) if update == "alternating" else None
    with Passes():
        adversarial_step(
            generator, critic, real, z,
            loss="non-saturating", penalty=penalty, update=update, critic_update=move,
        )  # fmt: skip
    assert total == passes


def test_bad_input() -> None:
    generator, critic, real, z = players()
    with pytest.raises(ValueError, match="did you mean 'alternating'"):
        adversarial_step(generator, critic, real, z, loss="hinge", update="alternate")
    with pytest.raises(ValueError, match="critic_update must be given"):
        adversarial_step(generator, critic, real, z, loss="hinge")
    with pytest.raises(ValueError, match="critic_update must not be given"):
        adversarial_step(
            generator, critic, real, z, loss="hinge", update="simultaneous", critic_update=print
        )
    with pytest.raises(ValueError, match="real and fake must be of one shape"):
        adversarial_step(generator, critic, real, z[:3], loss="hinge", update="simultaneous")
    with pytest.raises(ValueError, match="the generator must have a parameter"):
        adversarial_step(
            generator.requires_grad_(False), critic, real, z, loss="hinge", update="simultaneous"
        )


RANK = """
import sys, torch, critics
import torch.distributed as dist
from pyfastgan.gan import adversarial_step
from test_adversarial_step import players
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
if rank < 2:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.manual_seed(0)
generator, critic, _, _ = players()
torch.manual_seed(1)
real, z = torch.randn(7, 3, 8, 8, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
part = [slice(0, 4), slice(4, 7), slice(0, 7)][rank]  # an uneven last batch; rank 2 stands for one process
step = adversarial_step(generator, critic, real[part], z[part], loss="relativistic",
    penalty="wgan-gp", update="simultaneous", seed=5, sample_offset=part.start)
found = [p.grad for net in (generator, critic) for p in net.parameters()]
torch.save([*found, step.critic.loss, step.generator_loss], f"{folder}/{rank}.pt")
if rank < 2:
    dist.barrier(); dist.destroy_process_group()
"""


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    runs = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    for run in runs:
        _, text = run.communicate(timeout=120)
        assert run.returncode == 0, text
    first, second, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(3))
    for a, b, c in zip(first, second, one, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-6)
        torch.testing.assert_close(b, c, rtol=0, atol=1e-6)
