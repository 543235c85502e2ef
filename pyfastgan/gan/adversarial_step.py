"""A step of both players: `adversarial_step`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.gan.critic_plan import Plan
from pyfastgan.gan.critic_step import (
    CriticStep,
    add_gradients,
    autograd_penalty,
    averaged,
    check_condition,
    check_step,
    critic_step,
    finish,
    plan_of,
    scores,
    unwrapped,
)
from pyfastgan.gan.layer_passes import Gradients, backward, effective_weights, forward
from pyfastgan.gan.objectives import (
    discriminator_loss,
    generator_loss,
    generator_slope,
    get_objective,
    sample_scores,
)
from pyfastgan.gan.passes import Batch, Setting, autocast_dtype, explicit, half_to_float

_UPDATES = ("alternating", "simultaneous")


@dataclass(frozen=True)
class AdversarialStep:
    """What `adversarial_step` found.

    Args:
        critic: The critic's losses, and how its passes ran (`critic.plan`).
        generator_loss: A scalar of float32 or better, without gradients.
        fake: The generated samples, without gradients.
        finite: Whether the losses and gradients of both players are, a scalar of bool.
    """

    critic: CriticStep
    generator_loss: Tensor
    fake: Tensor
    finite: Tensor

    @property
    def plan(self) -> str:
        """`critic.plan`."""
        return self.critic.plan


def adversarial_step(
    generator: nn.Module,
    critic: nn.Module,
    real: Tensor,
    z: Tensor,
    *,
    loss: str,
    penalty: str | None = None,
    weight: float = 10.0,
    condition: Tensor | None = None,
    update: str = "alternating",
    critic_update: Callable[[], object] | None = None,
    interval: int = 1,
    skip_nonfinite: bool = False,
    loss_scale: float | Tensor = 1.0,
    synchronize: bool = True,
    seed: int | Tensor | None = None,
    stream: int = 0,
    sample_offset: int = 0,
    noise_generator: torch.Generator | None = None,
) -> AdversarialStep:
    """Adds the gradients of both players' losses to their parameters' `.grad`.

    update="alternating": the critic's gradients, then `critic_update()`, which steps its optimizer,
    then the generator's gradients against the new critic, whose weight gradients are not computed.
    update="simultaneous": both players' gradients at the same weights, and one forward and one
    backward pass of the critic for both: the cotangents of a critic that does not mix samples differ
    between the players by a number a sample. That is another game: alternating steps follow each
    other's moves, simultaneous ones follow the gradient vector field that the analysis of Mescheder
    et al. 2018 is about, and without a penalty circle an equilibrium where alternating ones stay
    bounded.

    Args:
        generator: Called as `generator(z)`, or `generator(z, condition)`.
        critic, real, loss, penalty, weight, condition, interval, skip_nonfinite, loss_scale,
            synchronize, seed, stream, sample_offset: As in `critic_step`.
        z: What the generator makes samples of, of real's shape.
        update: alternating or simultaneous.
        critic_update: Called between the players' turns where they alternate.
        noise_generator: `generator` of `critic_step`.

    Returns:
        The losses, the generated samples, and how the step ran.

    Raises:
        TypeError, ValueError: What `critic_step` refuses, an unknown update, a missing or needless
            `critic_update`, a generator none of whose parameters needs a gradient.
    """
    check_choice("update", update, _UPDATES)
    alternating = update == "alternating"
    if alternating != (critic_update is not None):
        raise ValueError(
            f"critic_update must {'be given' if alternating else 'not be given'} "
            f"where the update is {update}"
        )
    if not isinstance(generator, nn.Module):
        raise TypeError(f"generator must be a torch.nn.Module, got {type(generator).__name__}")
    trained = [p for p in generator.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the generator must have a parameter that needs a gradient")
    check_condition(condition, len(z))
    generator, critic = unwrapped(generator), unwrapped(critic)
    with torch.enable_grad():
        made = generator(z) if condition is None else generator(z, condition)
    fake = made.detach()
    check_step(critic, real, fake, loss, penalty, weight, condition, interval)
    noise = {
        "seed": seed,
        "stream": stream,
        "sample_offset": sample_offset,
        "generator": noise_generator,
    }
    low = autocast_dtype(real.device)
    setting = Setting(loss, penalty, weight * interval, condition, loss_scale, noise, low)
    if alternating:
        assert critic_update is not None
        step = critic_step(
            critic,
            real,
            fake,
            loss=loss,
            penalty=penalty,
            weight=weight,
            condition=condition,
            interval=interval,
            skip_nonfinite=skip_nonfinite,
            loss_scale=loss_scale,
            synchronize=synchronize,
            **noise,  # type: ignore[arg-type]
        )
        critic_update()
        plan, _ = plan_of(critic, real, condition)
        value, by_sample = _generators_turn(critic, plan, real, fake, setting)
    else:
        plan, reason = plan_of(critic, real, condition)
        turn = _both_by_autograd if plan is None else _both
        losses, gradients, value, by_sample = turn(critic, plan, real, fake, setting)
        step = finish(
            gradients, *losses, len(real), reason, skip_nonfinite, synchronize, setting.norms
        )
    found = torch.autograd.grad(made, trained, by_sample.to(made.dtype), allow_unused=True)
    pairs = [(p, g) for p, g in zip(trained, found, strict=True) if g is not None]
    with torch.no_grad():
        pairs, losses_of = averaged(pairs, value.reshape(1), len(real), synchronize)
        finite = add_gradients(pairs, losses_of, skip_nonfinite)
    return AdversarialStep(step, losses_of[0], fake, finite & step.finite)


def _generators_turn(
    critic: nn.Module, plan: Plan | None, real: Tensor, fake: Tensor, setting: Setting
) -> tuple[Tensor, Tensor]:
    """The generator's loss, and loss_scale times its derivative by the generated samples."""
    pairs = get_objective(setting.loss).pairs
    if plan is None:
        x = fake.detach().requires_grad_()
        frozen = [p for p in critic.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        try:
            with torch.enable_grad():
                judged = scores(critic, x, setting.condition)
                other = scores(critic, real, setting.condition) if pairs else None
                value = generator_loss(setting.loss, judged, other)
            (by_sample,) = torch.autograd.grad(value * setting.loss_scale, x)
        finally:
            for p in frozen:
                p.requires_grad_(True)
        return value.detach(), by_sample
    with explicit(real.device):
        weights, _ = effective_weights(plan, setting.low)
        values, kept = forward(plan, weights, fake, setting.condition)
        output = values.pop(plan.output)
        judged = half_to_float(sample_scores(output, len(output)))
        other = None
        if pairs:
            others, _ = forward(plan, weights, real, setting.condition)
            other = half_to_float(sample_scores(others[plan.output], len(real)))
        value = generator_loss(setting.loss, judged, other)
        slope = generator_slope(setting.loss, judged, other) * setting.loss_scale
        _, by_sample_ = backward(plan, weights, values, kept, slope, output, len(fake), keep=False)
        assert by_sample_ is not None
        return value, by_sample_


def _both(
    critic: nn.Module, plan: Plan | None, real: Tensor, fake: Tensor, setting: Setting
) -> tuple[tuple[Tensor, Tensor], Gradients, Tensor, Tensor]:
    """The critic's losses and gradients, the generator's loss, and its derivative by the samples."""
    assert plan is not None
    with explicit(real.device):
        batch = Batch(plan, real, fake, setting, samples_too=True)
        adversarial, penalty, gradients = batch.run()
        of_real, of_fake = batch.scores
        other = of_real if get_objective(setting.loss).pairs else None
        value = generator_loss(setting.loss, of_fake, other)
        by_sample = batch.fake_gradient(generator_slope(setting.loss, of_fake, other))
    return (adversarial, penalty), gradients, value, by_sample


def _both_by_autograd(
    critic: nn.Module, plan: Plan | None, real: Tensor, fake: Tensor, setting: Setting
) -> tuple[tuple[Tensor, Tensor], Gradients, Tensor, Tensor]:
    x = fake.detach().requires_grad_()
    trained = [p for p in critic.parameters() if p.requires_grad]
    with torch.enable_grad():
        of_real = scores(critic, real, setting.condition)
        of_fake = scores(critic, x, setting.condition)
        value = generator_loss(
            setting.loss, of_fake, of_real if get_objective(setting.loss).pairs else None
        )
        adversarial = discriminator_loss(setting.loss, of_real, of_fake)
    (by_sample,) = torch.autograd.grad(value * setting.loss_scale, x, retain_graph=True)
    found = torch.autograd.grad(adversarial * setting.loss_scale, trained, allow_unused=True)
    gradients = [(p, g) for p, g in zip(trained, found, strict=True) if g is not None]
    penalty = torch.zeros_like(adversarial.detach())
    if setting.penalty is not None:
        penalised = autograd_penalty(critic, real, fake, setting)
        found = torch.autograd.grad(penalised * setting.loss_scale, trained, allow_unused=True)
        gradients += [(p, g) for p, g in zip(trained, found, strict=True) if g is not None]
        penalty = penalised.detach()
    return (adversarial.detach(), penalty), gradients, value.detach(), by_sample
