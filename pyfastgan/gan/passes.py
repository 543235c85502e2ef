"""The passes of a fused step over the layers of a critic.

Where a critic can be taken apart (`plan_reader`), its loss and its gradient penalty take one forward
pass, one backward pass of cotangents, one pass of tangents through the penalised samples and **one**
weight gradient a layer: no double backward, and nothing that `torch.compile(fullgraph=True)` cannot
follow. `docs/gradient-penalties.md` derives the scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.gan.critic_plan import Plan
from pyfastgan.gan.linearised import Kept, per_sample
from pyfastgan.gan.linearised_maps import Affine
from pyfastgan.gan.objectives import (
    discriminator_loss,
    discriminator_slopes,
    get_objective,
    sample_scores,
)
from pyfastgan.gan.penalties import get_penalty, penalty_gradient, penalty_points
from pyfastgan.gan.sources import Pull

Gradients = list[tuple[nn.Parameter, Tensor]]

# oneDNN's convolutions are faster so, and pass on the layout to all that follows.
_CHANNELS_LAST = torch.backends.mkldnn.is_available()

# Elements of a batch from which its parts are worth passes of their own, which need less memory.
_LARGE = 1 << 18


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
    norms: list[Tensor] = field(default_factory=list)  # found: their mean at each set of points


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
        self.x = laid_out(torch.cat([parts[name] for name in order]))
        condition = setting.condition
        self.condition = None if condition is None else torch.cat([condition] * len(order))
        wanted = points + (["fake"] if samples_too and "fake" not in points else [])
        self.wanted = len(wanted) * self.count
        self.order = order

    def run(self) -> tuple[Tensor, Tensor, Gradients]:
        """The adversarial loss, the penalty and the gradients."""
        plan, wanted, loss = self.plan, self.wanted, self.setting.loss
        weights, pulls = effective_weights(plan, self.setting.low)
        end = len(self.x)
        found: list[Tensor | None] = [None] * len(weights)
        scores: dict[str, Tensor] = {}
        if 0 < wanted < end and self.x.numel() >= _LARGE:
            # One after the other, so that what the passes keep of the others is gone when the first begin,
            # unless the loss looks at both.
            rest = self._judge(weights, slice(wanted, end), scores)
            pairs = get_objective(loss).pairs
            first = self._judge(weights, slice(0, wanted), scores) if pairs else None
            some = next(iter(scores.values()))
            slopes = discriminator_slopes(loss, scores.get("real", some), scores.get("fake", some))
            found = self._gradients(weights, rest, slice(wanted, end), slopes)[1]
            del rest
            at = slice(0, wanted)
            first = self._judge(weights, at, scores) if first is None else first
        else:
            at = slice(0, end)
            first = self._judge(weights, at, scores)
        real, fake = self.scores = scores["real"], scores["fake"]
        adversarial = discriminator_loss(loss, real, fake)
        slopes = discriminator_slopes(loss, real, fake)
        penalty, gradients = self._gradients(weights, first, at, slopes)
        for k, gradient in enumerate(found):
            own = gradients[k]
            if gradient is not None:
                gradients[k] = gradient if own is None else own + gradient
        return adversarial, penalty.to(adversarial.dtype), pulled(plan, pulls, gradients)

    def _judge(
        self, weights: list[Tensor], at: slice, scores: dict[str, Tensor]
    ) -> tuple[dict[int, Tensor], list[Kept], Tensor]:
        """The forward pass of a part of the batch; writes its `scores` by name."""
        condition = None if self.condition is None else self.condition[at]
        values, kept = forward(self.plan, weights, self.x[at], condition)
        output = values.pop(self.plan.output)
        judged = half_to_float(sample_scores(output, len(output)))
        for name, own in self.at.items():
            if at.start <= own.start < at.stop and name in ("real", "fake"):
                scores[name] = judged[own.start - at.start : own.stop - at.start]
        return values, kept, output

    def _gradients(
        self,
        weights: list[Tensor],
        judged: tuple[dict[int, Tensor], list[Kept], Tensor],
        part: slice,
        slopes: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The penalty, and by weight the gradients of a part of the batch, the first or the last."""
        plan, count, scale = self.plan, self.count, self.setting.loss_scale
        by_name = dict(zip(("real", "fake"), slopes, strict=True))
        zero = torch.zeros_like(slopes[0])
        values, kept, output = judged
        starts, factors = [], []
        for name in self.order:
            own = self.at[name]
            if not part.start <= own.start < part.stop:
                continue
            slope, one = by_name.get(name, zero), torch.ones_like(zero)
            shared = own.stop <= self.wanted
            starts.append(one * (scale / count) if shared else slope * scale)
            factors.append(slope * count if shared else one)
        wanted = self.wanted if part.start == 0 else 0
        deltas, by_sample = backward(plan, weights, values, kept, torch.cat(starts), output, wanted)
        penalty, tangent = zero.sum(), None
        if wanted:
            assert by_sample is not None
            gradient = half_to_float(by_sample) * (count / scale)
            self.by_sample = gradient
            if self.points:
                assert self.setting.penalty is not None
                moved = []
                for name in self.points:
                    at, weight = self.at[name], self.setting.weight
                    value, v, norms = penalty_gradient(self.setting.penalty, gradient[at], weight)
                    self.setting.norms.append(norms.mean())
                    penalty = penalty + value
                    moved.append(v * count)
                tangent = torch.cat(moved) if len(moved) > 1 else moved[0]
        only_points = "between" in self.points or "around" in self.points
        found = weight_gradients(
            plan,
            weights,
            values,
            kept,
            deltas,
            torch.cat(factors),
            tangent,
            wanted,
            only_points,
        )
        return penalty, found

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
    for layer in plan.layers:
        if isinstance(layer, Affine):
            if low is not None:  # norms and biases cast as they need
                for k in layer.weights():
                    weights[k] = weights[k].to(low)
            # Once, since oneDNN would do it in every pass.
            weights[layer.weight] = laid_out(weights[layer.weight])
    return weights, pulls


def laid_out(x: Tensor) -> Tensor:
    """Samples or a weight in the layout to compute in."""
    if _CHANNELS_LAST and x.device.type == "cpu" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def forward(
    plan: Plan, weights: list[Tensor], x: Tensor, condition: Tensor | None
) -> tuple[dict[int, Tensor], list[Kept]]:
    """The inputs of convolutions and linear layers and the output, and what the layers keep."""
    x = laid_out(x)
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
    keep: bool = True,
) -> tuple[list[Tensor | None], Tensor | None]:
    """The cotangents that layers with weights or of second order need, if they are to be kept, and
    those of the first `wanted` samples."""
    patches = output[0].numel()
    first = per_sample(start if patches == 1 else start / patches, output).expand_as(output)
    cotangents: dict[int, Tensor] = {plan.output: first.to(output.dtype)}
    deltas: list[Tensor | None] = [None] * len(plan.layers)
    for k in range(len(plan.layers) - 1, -1, -1):
        layer = plan.layers[k]
        dy = cotangents.pop(layer.output, None)
        if dy is None:
            continue
        if keep and (layer.weights() or layer.second_order):
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
        again = plan.bends[layer.output] if count else False
        if plan.of_samples[layer.output] and any(t is not None for t in ts):
            part = tuple(t[:count] for t in kept[k])
            look = None if dy is None else dy[:count]
            tangents[layer.output], seconds[k], of_tangents = layer.tangent(weights, ts, part, look)
            for number, gradient in of_tangents:
                add(number, gradient)
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
            # Without a loss the first samples' cotangents count for nothing.
            start = count if only_points else 0
            rest = tuple(t[start:] for t in kept[k])
            some = None if whole is None else whole[start:]
            for number, gradient in layer.weight_gradients(weights, rest, dy[start:], some):
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
                dxs, of_q = layer.second(weights, q, part)
                found = list(dxs)
                for number, gradient in of_q:
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


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


@contextmanager
def explicit(device: torch.device) -> Iterator[None]:
    """Nothing is recorded, and nothing cast behind our back."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def half_to_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x
