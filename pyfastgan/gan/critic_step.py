"""One step of a critic without a graph: `critic_step`, and the passes that it shares with
`adversarial_step`.

Where a critic can be taken apart (`critic_plan`), its loss and its gradient penalty take one forward
pass, one backward pass of cotangents, one pass of tangents through the penalised samples and **one**
weight gradient a layer: no double backward, and nothing that `torch.compile(fullgraph=True)` cannot
follow. Else autograd does the same by double backward, and `.plan` says why.
`docs/gradient-penalties.md` derives the scheme.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.critic_plan import Plan, Unsupported, read_critic
from pyfastgan.gan.linearised import Affine, Kept, per_sample
from pyfastgan.gan.objectives import (
    discriminator_loss,
    discriminator_slopes,
    get_objective,
    sample_scores,
)
from pyfastgan.gan.penalties import (
    _check_samples as check_samples,
)
from pyfastgan.gan.penalties import (
    check_trainable,
    check_weight,
    get_penalty,
    gradient_penalty,
    penalty_gradient,
    penalty_points,
)
from pyfastgan.gan.sources import Pull

Gradients = list[tuple[nn.Parameter, Tensor]]


@dataclass(frozen=True)
class CriticStep:
    """What `critic_step` found; the scalars are float32 or better, without gradients.

    Args:
        loss: adversarial + penalty.
        adversarial: The loss of the critic's outputs.
        penalty: The gradient penalty with its weight, 0 without one.
        finite: Whether the losses and all gradients are, a scalar of bool.
        plan: "fused", or "autograd: " and which layer could not be taken apart, and why.
    """

    loss: Tensor
    adversarial: Tensor
    penalty: Tensor
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
    return finish(gradients, adversarial, penalised, len(real), reason, skip_nonfinite, synchronize)


@dataclass
class Setting:
    """What the passes need to know of a step."""

    loss: str
    penalty: str | None
    weight: float
    condition: Tensor | None
    loss_scale: float | Tensor
    noise: dict[str, Any]
    low: torch.dtype | None  # autocast's


class Batch:
    """The samples of a step in one batch, and the passes over them.

    Penalised samples come first, those whose dD/dx is wanted beside them next. Their cotangents
    start with 1 / N (times the loss scale) and are given the slope of the loss, N s_i, when the
    weight gradients are taken; the others' start with s_i. The 1 / N stands in the cotangents
    because tangents, slopes and gradients then all have sizes that float16 holds.

    Args:
        samples_too: Whether dD/dx of the generated samples is wanted (`fake_gradient`).
    """

    def __init__(
        self, plan: Plan, real: Tensor, fake: Tensor, setting: Setting, samples_too: bool = False
    ) -> None:
        self.plan, self.setting, self.count = plan, setting, len(real)
        row = None if setting.penalty is None else get_penalty(setting.penalty)
        points = [] if row is None else list(row.points)
        self.points = points
        parts: dict[str, Tensor] = {}
        if row is not None:
            assert setting.penalty is not None
            found = penalty_points(setting.penalty, real, fake, **setting.noise)
            parts = dict(zip(points, found, strict=True))
        first = ["fake", "real"] if samples_too else ["real", "fake"]
        order = [*points, *(name for name in first if name not in points)]
        parts = {"real": real.detach(), "fake": fake, **parts}
        self.at = {
            name: slice(k * self.count, (k + 1) * self.count) for k, name in enumerate(order)
        }
        self.x = torch.cat([parts[name] for name in order])
        condition = setting.condition
        self.condition = None if condition is None else torch.cat([condition] * len(order))
        self.tangents = len(points) * self.count
        wanted = points + (["fake"] if samples_too and "fake" not in points else [])
        self.wanted = len(wanted) * self.count
        self.order = order

    def run(self) -> tuple[Tensor, Tensor, Gradients]:
        """The adversarial loss, the penalty and the gradients."""
        plan, count = self.plan, self.count
        weights, pulls = effective_weights(plan, self.setting.low)
        values, kept = forward(plan, weights, self.x, self.condition)
        output = values.pop(plan.output)
        scores = sample_scores(output, len(output))
        scores = scores.float() if scores.dtype.itemsize == 2 else scores
        real, fake = scores[self.at["real"]], scores[self.at["fake"]]
        self.scores = real, fake
        adversarial = discriminator_loss(self.setting.loss, real, fake)
        slopes = dict(zip(("real", "fake"), discriminator_slopes(self.setting.loss, real, fake)))

        scale = self.setting.loss_scale
        starts, factors = [], []
        for name in self.order:
            one = torch.ones_like(real)
            slope = slopes.get(name, torch.zeros_like(real))
            shared = self.at[name].stop <= self.wanted
            starts.append(one * (scale / count) if shared else slope * scale)
            factors.append(slope * count if shared else one)
        start = torch.cat(starts)
        factor = torch.cat(factors)
        deltas, by_sample = backward(plan, weights, values, kept, start, output, self.wanted)

        penalty = torch.zeros_like(adversarial)
        tangent = None
        if self.wanted:
            assert by_sample is not None
            exact = by_sample if by_sample.dtype == torch.float64 else by_sample.float()
            gradient = exact * (count / scale)
            self.by_sample = gradient
            if self.points:
                assert self.setting.penalty is not None
                moved = []
                for name in self.points:
                    at, weight = self.at[name], self.setting.weight
                    value, v = penalty_gradient(self.setting.penalty, gradient[at], weight)
                    penalty = penalty + value
                    moved.append(v * count)
                tangent = torch.cat(moved) if len(moved) > 1 else moved[0]
        only_points = "between" in self.points or "around" in self.points
        gradients = weight_gradients(
            plan, weights, values, kept, deltas, factor, tangent, self.wanted, only_points
        )
        return adversarial, penalty, pulled(plan, pulls, gradients)

    def fake_gradient(self, slope: Tensor) -> Tensor:
        """loss_scale * slope_i * dD/dx_i at the generated samples."""
        gradient = self.by_sample[self.at["fake"]]
        return gradient * per_sample(slope * self.setting.loss_scale, gradient)


def effective_weights(plan: Plan, low: torch.dtype | None) -> tuple[list[Tensor], list[Pull]]:
    """The weights of the step in the dtype to compute in, and the ways of their gradients."""
    weights, pulls = [], []
    for source in plan.sources:
        value, pull = source.value()
        weights.append(value.detach())
        pulls.append(pull)
    if low is not None:
        # Norms and biases cast as they need; the weights of convolutions and linear layers here.
        for layer in plan.layers:
            if isinstance(layer, Affine):
                for k in layer.weights():
                    weights[k] = weights[k].to(low)
    return weights, pulls


def forward(
    plan: Plan, weights: list[Tensor], x: Tensor, condition: Tensor | None
) -> tuple[dict[int, Tensor], list[Kept]]:
    """The inputs of convolutions and linear layers and the output, and what the layers keep."""
    values = {0: x} if condition is None else {0: x, 1: condition}
    inputs = {layer.inputs[0] for layer in plan.layers if layer.affine}
    kept: list[Kept] = []
    for layer, last in zip(plan.layers, plan.last_use, strict=True):
        y, keeps = layer.forward(weights, *[values[v] for v in layer.inputs])
        values[layer.output] = y
        kept.append(keeps)
        for v in last:
            if v not in inputs and v != plan.output:
                del values[v]
    return values, kept


def backward(
    plan: Plan,
    weights: list[Tensor],
    values: dict[int, Tensor],
    kept: list[Kept],
    start: Tensor,
    output: Tensor,
    wanted: int,
) -> tuple[list[Tensor | None], Tensor | None]:
    """The cotangents that layers with weights or of second order need, and those of the first
    `wanted` samples."""
    patches = output[0].numel()
    first = per_sample(start if patches == 1 else start / patches, output).expand_as(output)
    cotangents: dict[int, Tensor] = {plan.output: first.to(output.dtype)}
    deltas: list[Tensor | None] = [None] * len(plan.layers)
    for k in range(len(plan.layers) - 1, -1, -1):
        layer = plan.layers[k]
        dy = cotangents.pop(layer.output, None)
        if dy is None:
            continue
        if layer.weights() or layer.second_order:
            deltas[k] = dy
        if layer.inputs == (0,) and wanted == 0:
            continue
        if isinstance(layer, Affine):
            x = values[layer.inputs[0]]
            if layer.inputs[0] == 0:
                dy, x = dy[:wanted], x[:wanted]
            elif layer.inputs[0] == 1:
                continue
            found: tuple[Tensor | None, ...] = (layer.data_gradient(weights, dy, x),)
        else:
            found = layer.backward(weights, dy, kept[k])
        for v, dx in zip(layer.inputs, found, strict=True):
            if dx is None or v == 1:
                continue
            if v == 0:
                dx = dx[:wanted]
            cotangents[v] = cotangents[v] + dx if v in cotangents else dx
    return deltas, cotangents.get(0)


def weight_gradients(
    plan: Plan,
    weights: list[Tensor],
    values: dict[int, Tensor],
    kept: list[Kept],
    deltas: list[Tensor | None],
    factor: Tensor,
    tangent: Tensor | None,
    wanted: int,
    only_points: bool,
) -> list[Tensor | None]:
    """By weight. The pass of tangents, each layer's weight gradient on its way, and the pass of
    second cotangents where layers of second order start one.

    Lets go of what is kept layer by layer, and overwrites values where nobody else looks at them.
    """
    found: list[Tensor | None] = [None] * len(weights)
    needed = [source.wanted() for source in plan.sources]

    def add(k: int, gradient: Tensor) -> None:
        if needed[k]:
            before = found[k]
            found[k] = gradient if before is None else before + gradient

    count = 0 if tangent is None else len(tangent)
    whole = factor if wanted else None  # all are one
    tangents: dict[int, Tensor] = {} if tangent is None else {0: tangent}
    scaled: dict[int, Tensor] = {}
    seconds: list[tuple[Tensor | None, ...]] = [()] * len(plan.layers)
    last_affine = {layer.inputs[0]: k for k, layer in enumerate(plan.layers) if layer.affine}
    for k, layer in enumerate(plan.layers):
        dy = deltas[k]
        ts = tuple(tangents.get(v) for v in layer.inputs)
        extra: Kept = ()
        again = plan.bends[layer.output] if count else False
        if plan.of_samples[layer.output] and any(t is not None for t in ts):
            part = tuple(t[:count] for t in kept[k])
            look = dy[:count] if layer.second_order and dy is not None else None
            tangents[layer.output], seconds[k], extra = layer.tangent(weights, ts, part, look)
        if isinstance(layer, Affine) and dy is not None:
            v = layer.inputs[0]
            if needed[layer.weight]:
                if v not in scaled:
                    t = tangents.get(v)
                    scaled[v] = combined(
                        values[v],
                        t,
                        factor,
                        wanted,
                        only_points,
                        own=plan.owned[v] and not (plan.bends[v] and count),
                    )
                add(layer.weight, layer.gradient(weights, dy, scaled[v]))
            if layer.bias is not None and needed[layer.bias]:
                add(layer.bias, layer.bias_gradient(dy, whole))
            if last_affine[v] == k:
                scaled.pop(v, None)
                if not again:
                    values.pop(v, None)
        elif dy is not None and layer.weights():
            for number, gradient in layer.weight_gradients(weights, kept[k], dy, whole, extra):
                add(number, gradient)
        deltas[k] = None
        if not again:
            kept[k] = ()
        for v in plan.last_use[k]:
            tangents.pop(v, None)
    if any(q is not None for second in seconds for q in second):
        bend(plan, weights, values, kept, seconds, count, add)
    return found


def combined(
    h: Tensor, t: Tensor | None, factor: Tensor, wanted: int, only_points: bool, own: bool
) -> Tensor:
    """N s_i h_i + t_i of the penalised samples, N s_i h_i of those that are `wanted` beside them, and
    h_i of the others; in h itself if it is our own.

    `only_points`: penalised samples have no loss, s_i = 0.
    """
    if wanted == 0:
        return h
    count = 0 if t is None else len(t)
    scale = per_sample(factor, h)
    if own and not torch.compiler.is_compiling() and (t is None or t.dtype == h.dtype):
        if t is not None and only_points:
            h[:count].copy_(t)
        elif t is not None:
            torch.addcmul(t, h[:count], scale[:count], out=h[:count])
        if count < wanted:
            h[count:wanted].mul_(scale[count:wanted])
        return h
    parts = []
    if t is not None:
        t = t.to(h.dtype)
        parts.append(t if only_points else torch.addcmul(t, h[:count], scale[:count]))
    if count < wanted:
        parts.append(h[count:wanted] * scale[count:wanted])
    if wanted < len(h):
        parts.append(h[wanted:])
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def bend(
    plan: Plan,
    weights: list[Tensor],
    values: dict[int, Tensor],
    kept: list[Kept],
    seconds: list[tuple[Tensor | None, ...]],
    count: int,
    add: Callable[[int, Tensor], None],
) -> None:
    """The pass of second cotangents q through the penalised samples, and its weight gradients."""
    cotangents: dict[int, Tensor] = {}
    for k in range(len(plan.layers) - 1, -1, -1):
        layer = plan.layers[k]
        q = cotangents.pop(layer.output, None)
        found: list[Tensor | None] = [None] * len(layer.inputs)
        if q is not None:
            part = tuple(t[:count] for t in kept[k])
            if isinstance(layer, Affine):
                x = values[layer.inputs[0]][:count]
                add(layer.weight, layer.gradient(weights, q, x))
                if layer.bias is not None:
                    add(layer.bias, layer.bias_gradient(q, None))
                if layer.inputs[0] > 1:
                    found = [layer.data_gradient(weights, q, x)]
            else:
                found = list(layer.backward(weights, q, part))
                for number, gradient in layer.weight_gradients(weights, part, q, None):
                    add(number, gradient)
            kept[k] = ()
        for v, one, two in zip(
            layer.inputs, found, seconds[k] or (None,) * len(found), strict=True
        ):
            for dx in (one, two):
                if dx is not None and v > 1:
                    cotangents[v] = cotangents[v] + dx if v in cotangents else dx


def pulled(plan: Plan, pulls: list[Pull], gradients: list[Tensor | None]) -> Gradients:
    """The gradients of effective weights as gradients of parameters."""
    found: Gradients = []
    for source, pull, gradient in zip(plan.sources, pulls, gradients, strict=True):
        if gradient is not None:
            exact = source.parameters()[0].dtype
            found += [(p, g) for p, g in pull(gradient.to(exact)) if _trained(p)]
    return found


def _trained(p: Tensor) -> bool:
    return isinstance(p, nn.Parameter) and p.requires_grad


def autograd_losses(
    critic: nn.Module, real: Tensor, fake: Tensor, setting: Setting
) -> tuple[Tensor, Tensor]:
    """The adversarial loss and the penalty with their graph."""
    with torch.enable_grad():
        outputs = [scores(critic, x.detach(), setting.condition) for x in (real, fake)]
        adversarial = discriminator_loss(setting.loss, *outputs)
        if setting.penalty is None:
            return adversarial, torch.zeros_like(adversarial)
        penalty = gradient_penalty(
            critic,
            real,
            fake,
            penalty=setting.penalty,
            weight=setting.weight,
            condition=setting.condition,
            **setting.noise,
        )
    return adversarial, penalty


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
) -> CriticStep:
    """Averages over the ranks, looks whether all is finite, and adds to `.grad`."""
    losses = torch.stack([adversarial, penalty.to(adversarial.dtype)])
    with torch.no_grad():
        gradients, losses = averaged(gradients, losses, count, synchronize)
        finite = add_gradients(gradients, losses, skip_nonfinite)
    adversarial, penalty = losses.unbind()
    plan = "fused" if reason is None else f"autograd: {reason}"
    return CriticStep(adversarial + penalty, adversarial, penalty, finite, plan)


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
    largest = torch._foreach_norm([losses, *(g for _, g in gradients)], float("inf"))
    finite = torch.stack([one.to(losses.dtype) for one in largest]).sum().isfinite()
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
            p.grad = g
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
    return critic._pyfastgan_plans.found[key]  # type: ignore[union-attr, operator]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, whose hooks an explicit step does without."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.module
    return module


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


@contextmanager
def explicit(device: torch.device) -> Iterator[None]:
    """Nothing is recorded, and nothing cast behind our back."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


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
    get_objective(loss)
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
