"""A critic's step by autograd and by `critic_step`, for tests."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from critics import SHAPE
from torch import Tensor, nn

from pyfastgan.gan import critic_step, discriminator_loss, gradient_penalty
from pyfastgan.gan.objectives import sample_scores

COUNT = 4


def batch(dtype: torch.dtype = torch.float64, *, last: bool = False, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, COUNT, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    form = torch.channels_last if last else torch.contiguous_format
    return [x.contiguous(memory_format=form) for x in pair]


def by_autograd(
    critic: nn.Module, real: Tensor, fake: Tensor, loss: str, penalty: str | None, **more: Any
) -> dict[str, Tensor]:
    """The gradients by name, and the losses under "loss" and "penalty"."""
    condition = more.pop("condition", None)

    def judge(x: Tensor) -> Tensor:
        return sample_scores(critic(x) if condition is None else critic(x, condition), len(x))

    found = {"loss": discriminator_loss(loss, judge(real), judge(fake))}
    total = found["loss"]
    if penalty is not None:
        found["penalty"] = gradient_penalty(
            critic, real, fake, penalty=penalty, condition=condition, **more
        )
        total = total + found["penalty"]
    names, weights = zip(*critic.named_parameters(), strict=True)
    grads = torch.autograd.grad(total, weights, allow_unused=True)
    return found | {n: g for n, g in zip(names, grads, strict=True) if g is not None}


def by_step(critic: nn.Module, *args: Any, **more: Any) -> dict[str, Tensor]:
    critic.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = critic_step(critic, *args[:2], loss=args[2], penalty=args[3], **more)
    assert step.plan == "fused"
    assert bool(step.finite)
    found = {"loss": step.adversarial, "penalty": step.penalty}
    return found | {n: p.grad for n, p in critic.named_parameters() if p.grad is not None}
