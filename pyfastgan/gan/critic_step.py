"""One step of a critic without a graph, `critic_step`: the passes of `passes` where the critic can be
taken apart, else autograd's double backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan._layout import dense_like
from pyfastgan._names import check_choice
from pyfastgan.gan.critic_plan import Plan, Unsupported
from pyfastgan.gan.layer_passes import Gradients
from pyfastgan.gan.objectives import OBJECTIVES, discriminator_loss, sample_scores
from pyfastgan.gan.passes import Batch, Setting, autocast_dtype, explicit
from pyfastgan.gan.penalties import (
    _check_samples as check_samples,
)
from pyfastgan.gan.penalties import (
    check_trainable,
    check_weight,
    get_penalty,
    penalty_and_norm,
)
from pyfastgan.gan.plan_reader import read_critic


@dataclass(frozen=True)
class CriticStep:
    """What `critic_step` found; the scalars are float32 or better, without gradients.

    Args:
        loss: adversarial + penalty.
        adversarial: The loss of the critic's outputs.
        penalty: The gradient penalty with its weight, 0 without one.
        gradient_norm: The mean of |dD/dx| at the penalised points, 0 without a penalty; of this
            rank's samples.
        finite: Whether the losses and all gradients are, a scalar of bool.
        plan: "fused", or "autograd: " and which layer could not be taken apart, and why.
    """

    loss: Tensor
    adversarial: Tensor
    penalty: Tensor
    gradient_norm: Tensor
    finite: Tensor
    plan: str


def critic_step(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    *,
    loss: str,
    penalty: str | None = None,
    weight: float = 10.0,
    condition: Tensor | None = None,
    interval: int = 1,
    skip_nonfinite: bool = False,
    loss_scale: float | Tensor = 1.0,
    synchronize: bool = True,
    seed: int | Tensor | None = None,
    stream: int = 0,
    sample_offset: int = 0,
    generator: torch.Generator | None = None,
) -> CriticStep:
    """Adds the gradients of the critic's loss and gradient penalty to its parameters' `.grad`.

    Exact: the gradients are those of `discriminator_loss` + `gradient_penalty` by autograd, for
    critics whose layers do not mix samples (others fall back to just that, and a warning says so
    once). All samples take one pass together: a spectral norm in training mode takes its power
    iteration once a step. Under autocast convolutions and linear layers compute in its dtype,
    norms, losses and penalties in float32.

    Args:
        critic: Called as `critic(x)`, or `critic(x, condition)` where a condition is given; returns
            (N,), (N, 1), or patches (N, 1, h, w), which are averaged a sample.
        real, fake: (N, ...), of one shape and dtype; no gradients flow to them.
        loss: A name of `OBJECTIVES`.
        penalty: wgan-gp, wgan-gp-one-sided, r1, r2, r1r2, dragan, or None.
        weight: Of the penalty, at least 0.
        condition: What the critic is told about real and fake samples alike: a tensor whose
            dimension 0 counts samples.
        interval: Multiplies the penalty, for one that is taken on one step in `interval` alone;
            on the others leave the penalty out.
        skip_nonfinite: Add nothing where a loss or a gradient is not finite, and warn. Looks at the
            result on the host; under `torch.compile` zeros are added instead: see `finite`.
        loss_scale: Multiplies the gradients, not the losses that are returned:
            `GradScaler.get_scale()` for float16.
        synchronize: Average over the ranks where `torch.distributed` is initialised, each weighted
            by its number of samples: one all-reduce. False where whoever steps the optimizer
            averages, as `pyfastgan.training` does.
        seed, stream, sample_offset, generator: The noise of the penalty's points, as in
            `pyfastgan.ops.random_uniform`.

    Returns:
        The losses, and how the step ran.

    Raises:
        TypeError, ValueError: An unknown loss or penalty (with the nearest), a weight below 0,
            samples of two shapes or none, a condition of another length, a critic whose output has
            another shape, or none of whose parameters needs a gradient.
    """
    check_step(critic, real, fake, loss, penalty, weight, condition, interval)
    noise = {
        "seed": seed,
        "stream": stream,
        "sample_offset": sample_offset,
        "generator": generator,
    }
    critic = unwrapped(critic)
    plan, reason = plan_of(critic, real, condition)
    low = autocast_dtype(real.device)
    setting = Setting(loss, penalty, weight * interval, condition, loss_scale, noise, low)
    if plan is None:
        found = autograd_losses(critic, real, fake, setting)
        scaled = (found[0] + found[1]) * loss_scale
        trained = [p for p in critic.parameters() if p.requires_grad]
        grads = torch.autograd.grad(scaled, trained, allow_unused=True)
        gradients = [(p, g) for p, g in zip(trained, grads, strict=True) if g is not None]
        adversarial, penalised = (part.detach() for part in found)
    else:
        batch = Batch(plan, real, fake.detach(), setting)
        with explicit(real.device):
            adversarial, penalised, gradients = batch.run()
    return finish(
        gradients,
        adversarial,
        penalised,
        len(real),
        reason,
        skip_nonfinite,
        synchronize,
        setting.norms,
    )


def autograd_losses(
    critic: nn.Module, real: Tensor, fake: Tensor, setting: Setting
) -> tuple[Tensor, Tensor]:
    """The adversarial loss and the penalty with their graph."""
    with torch.enable_grad():
        outputs = [scores(critic, x.detach(), setting.condition) for x in (real, fake)]
        adversarial = discriminator_loss(setting.loss, *outputs)
        if setting.penalty is None:
            return adversarial, torch.zeros_like(adversarial)
    return adversarial, autograd_penalty(critic, real, fake, setting)


def autograd_penalty(critic: nn.Module, real: Tensor, fake: Tensor, setting: Setting) -> Tensor:
    """The penalty with its graph."""
    assert setting.penalty is not None
    penalty, norm = penalty_and_norm(
        critic,
        real,
        fake,
        penalty=setting.penalty,
        weight=setting.weight,
        condition=setting.condition,
        **setting.noise,
    )
    setting.norms.append(norm)
    return penalty


def scores(critic: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
    """The critic's output, one number a sample."""
    return sample_scores(critic(x) if condition is None else critic(x, condition), len(x))


def finish(
    gradients: Gradients,
    adversarial: Tensor,
    penalty: Tensor,
    count: int,
    reason: str | None,
    skip_nonfinite: bool,
    synchronize: bool,
    norms: Sequence[Tensor] = (),
) -> CriticStep:
    """Averages over the ranks, looks whether all is finite, and adds to `.grad`."""
    losses = torch.stack([adversarial, penalty.to(adversarial.dtype)])
    with torch.no_grad():
        gradients, losses = averaged(gradients, losses, count, synchronize)
        finite = add_gradients(gradients, losses, skip_nonfinite)
    adversarial, penalty = losses.unbind()
    plan = "fused" if reason is None else f"autograd: {reason}"
    norm = torch.stack(list(norms)).mean() if norms else torch.zeros_like(penalty)
    return CriticStep(adversarial + penalty, adversarial, penalty, norm, finite, plan)


def averaged(
    gradients: Gradients, losses: Tensor, count: int, synchronize: bool
) -> tuple[Gradients, Tensor]:
    """The mean over the ranks, weighted by their samples, in one reduction."""
    distributed = torch.distributed
    if not (synchronize and distributed.is_available() and distributed.is_initialized()):
        return gradients, losses
    dtype = max([losses.dtype, *(g.dtype for _, g in gradients)], key=lambda d: d.itemsize)
    parts = [losses, *(g.reshape(-1) for _, g in gradients)]
    flat = torch.cat([part.to(dtype) * count for part in parts] + [losses.new_full((1,), count)])
    distributed.all_reduce(flat)
    flat = flat[:-1] / flat[-1]
    losses, *means = flat.split([part.numel() for part in parts])
    return [
        (p, mean.reshape(g.shape).to(g.dtype))
        for (p, g), mean in zip(gradients, means, strict=True)
    ], losses


def add_gradients(gradients: Gradients, losses: Tensor, skip_nonfinite: bool) -> Tensor:
    """Adds to `.grad`; returns whether losses and gradients are finite."""
    # A sum takes a tenth of the largest value's time. One of finite numbers leaves float32 only where the
    # next update would.
    sums = [g.sum(dtype=losses.dtype) for g in (losses, *(g for _, g in gradients))]
    finite = torch.stack(sums).sum().isfinite()
    if skip_nonfinite:
        if torch.compiler.is_compiling():
            gradients = [(p, torch.where(finite, g, 0)) for p, g in gradients]
        elif not finite:
            warnings.warn(
                f"a loss or gradient is not finite (losses {losses.tolist()}): step skipped",
                stacklevel=4,
            )
            return finite
    for p, g in gradients:
        g = g.to(p.dtype)
        if p.grad is None:
            # As the parameter lies in memory: torch's fused Adam goes through both in order.
            p.grad = dense_like(g, p)
        else:
            p.grad.add_(g)
    return finite


class _Plans:
    """The plans of a critic, kept with it; a copy of the critic makes its own."""

    def __init__(self) -> None:
        self.structure: Any = None
        self.found: dict[Any, tuple[Plan | None, str | None]] = {}

    def __deepcopy__(self, memo: Any) -> _Plans:
        return _Plans()

    def __reduce__(self) -> Any:
        return _Plans, ()


@torch.compiler.assume_constant_result  # planned once while a graph is traced, outside it
def _make_plan(critic: nn.Module, key: Any, real: Tensor, condition: Tensor | None) -> bool:
    plans = critic.__dict__.get("_pyfastgan_plans")
    if plans is None:
        plans = critic.__dict__["_pyfastgan_plans"] = _Plans()
    structure = [(id(m), m.training, len(m._forward_pre_hooks)) for m in critic.modules()]
    if plans.structure != structure:
        plans.structure = structure
        plans.found.clear()
    if key not in plans.found:
        try:
            plans.found[key] = read_critic(critic, real, condition), None
        except Unsupported as unsupported:
            reason = str(unsupported)
            plans.found[key] = None, reason
            warnings.warn(
                f"the critic is differentiated by autograd, which is slower: {reason}", stacklevel=4
            )
    return True


def plan_of(
    critic: nn.Module, real: Tensor, condition: Tensor | None
) -> tuple[Plan | None, str | None]:
    """The plan of a critic, or None and why it has none."""
    about = () if condition is None else (str(condition.dtype), *condition.shape[1:])
    # Of what `torch.compile` can write into its guards: a dtype is not.
    key = (str(real.dtype), *real.shape[1:], *about)
    _make_plan(critic, key, real, condition)
    plans: Any = critic._pyfastgan_plans
    return plans.found[key]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, whose hooks an explicit step does without."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.module
    return module


def check_step(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    loss: str,
    penalty: str | None,
    weight: float,
    condition: Tensor | None,
    interval: int,
) -> None:
    """Refuses what `critic_step` says it refuses."""
    if not isinstance(critic, nn.Module):
        raise TypeError(f"critic must be a torch.nn.Module, got {type(critic).__name__}")
    check_choice("loss", loss, OBJECTIVES)
    if penalty is not None:
        get_penalty(penalty)
    check_weight(weight, interval)
    check_trainable(critic)
    check_samples(real, fake, needs_fake=True)
    check_condition(condition, len(real))


def check_condition(condition: Tensor | None, count: int) -> None:
    if condition is None:
        return
    if not isinstance(condition, Tensor):
        raise TypeError(f"condition must be a tensor or None, got {type(condition).__name__}")
    if condition.dim() == 0 or len(condition) != count:
        raise ValueError(
            f"condition must be of one length with the samples, {count}, got shape {tuple(condition.shape)}"
        )
