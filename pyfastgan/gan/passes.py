"""The passes of a fused step over the layers of a critic.

Where a critic can be taken apart (`plan_reader`), its loss and its gradient penalty take one forward
pass, one backward pass of cotangents, one pass of tangents through the penalised samples and **one**
weight gradient a layer: no double backward, and nothing that `torch.compile(fullgraph=True)` cannot
follow. `docs/gradient-penalties.md` derives the scheme.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyfastgan.gan.critic_plan import Plan
from pyfastgan.gan.layer_passes import (
    Gradients,
    backward,
    effective_weights,
    forward,
    laid_out,
    pulled,
    weight_gradients,
)
from pyfastgan.gan.linearised import Found, Kept, added, per_sample
from pyfastgan.gan.objectives import (
    discriminator_loss,
    discriminator_slopes,
    get_objective,
    sample_scores,
)
from pyfastgan.gan.penalties import get_penalty, penalty_gradient, penalty_points

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
                gradients[k] = gradient if own is None else added(own, gradient)
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
        early: dict[int, Found] | None = None if wanted else {}
        deltas, by_sample = backward(
            plan, weights, values, kept, torch.cat(starts), output, wanted, early=early
        )
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
            early,
        )
        return penalty, found

    def fake_gradient(self, slope: Tensor) -> Tensor:
        """loss_scale * slope_i * dD/dx_i at the generated samples."""
        gradient = self.by_sample[self.at["fake"]]
        return gradient * per_sample(slope * self.setting.loss_scale, gradient)


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
