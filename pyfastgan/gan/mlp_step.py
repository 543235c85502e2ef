"""Both players' turns where they are the networks of `mlp`, written out.

With a hundred units and a few hundred points the products take less than half of an eager step, and
the rest is what every operation and every node of a graph costs. So here is no graph: the passes of
`passes`, for layers that are all linear with ReLU, in as few operations as they take, with gradients
written into `.grad` where they lie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyfastgan.gan.mlp import MLPCritic, MLPGenerator
from pyfastgan.gan.objectives import (
    discriminator_loss,
    discriminator_slopes,
    generator_loss,
    generator_slope,
    get_objective,
)
from pyfastgan.gan.penalties import penalty_gradient, penalty_points

_relu_backward = torch.ops.aten.threshold_backward.grad_input


class Passes:
    """The passes of one network, to be called under `torch.no_grad()`.

    What they return lies in memory that the next call of the same pass on as many samples writes
    anew: maps of this size, given back and taken again, cost more in page faults than in products.

    Args:
        network: Its parameters are read and their `.grad` is overwritten, never added to.
    """

    def __init__(self, network: MLPGenerator | MLPCritic) -> None:
        layers = [layer for layer in network.main if isinstance(layer, nn.Linear)]
        self._weights = [layer.weight for layer in layers]
        self._biases = [layer.bias for layer in layers]
        self._kept: dict[tuple[str, int], Tensor] = {}

    def room(self, use: str, like: Tensor, columns: int) -> Tensor:
        """Uninitialised memory (N, columns) for that use, the same at every call."""
        count = like.shape[0]  # where len() goes through Python
        found = self._kept.get((use, count))
        if found is None or found.dtype != like.dtype or found.device != like.device:
            found = self._kept[use, count] = like.new_empty(count, columns)
        return found

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What enters each layer, (N, units) each, and the output."""
        values = [x]
        for k, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            y = self.room(f"value {k}", x, weight.shape[0])
            torch.addmm(bias, values[-1], weight.t(), out=y)
            values.append(y if k == len(self._weights) - 1 else y.relu_())
        return values[:-1], values[-1]

    def backward(self, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
        """The cotangents of each layer's output, before its ReLU, from that of the network's."""
        deltas = [cotangent]
        for k in range(len(self._weights) - 1, 0, -1):
            weight = self._weights[k]
            delta = self.room(f"cotangent {k}", cotangent, weight.shape[1])
            if weight.shape[0] == 1:  # a product of one term takes as long as one of many
                torch.mul(deltas[-1], weight, out=delta)
            else:
                torch.mm(deltas[-1], weight, out=delta)
            deltas.append(_relu_backward(delta, inputs[k], 0, grad_input=delta))
        return deltas[::-1]

    def input_cotangent(self, deltas: list[Tensor]) -> Tensor:
        """The cotangent of what entered the network."""
        # Written in the order of memory: a product with two columns takes three times as long.
        return linear(deltas[0], self._weights[0].t().contiguous())

    def tangents(self, inputs: list[Tensor], v: Tensor) -> list[Tensor]:
        """What enters each layer of the linearised network, for the direction v of its input."""
        found = [v]
        for k, weight in enumerate(self._weights[:-1]):
            t = self.room(f"tangent {k}", v, weight.shape[0])
            torch.mm(found[-1], weight.t(), out=t)
            found.append(_relu_backward(t, inputs[k + 1][: v.shape[0]], 0, grad_input=t))
        return found

    def write(
        self, deltas: list[Tensor], inputs: list[Tensor], factor: Tensor | None = None
    ) -> None:
        """The gradients of the weights, deltas' inputs, and of the biases, the sums of the deltas
        times `factor` (N, 1)."""
        for weight, bias, dy, x in zip(self._weights, self._biases, deltas, inputs, strict=True):
            if weight.grad is None:
                weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)
            if x.shape[1] < dy.shape[1]:  # as above
                weight.grad.copy_(torch.mm(x.t(), dy).t())
            else:
                torch.mm(dy.t(), x, out=weight.grad)
            if factor is None:
                torch.sum(dy, 0, out=bias.grad)
            else:
                torch.mv(dy.t(), factor[:, 0], out=bias.grad)


@torch.no_grad()
def critics_turn(
    critic: Passes,
    real: Tensor,
    fake: Tensor,
    *,
    objective: str,
    penalty: str | None = None,
    weight: float = 10.0,
    **noise: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that `critic_step` gives, into the critic's `.grad`.

    Args:
        critic: Of the network.
        real, fake: (N, D).
        objective: A name of `OBJECTIVES`.
        penalty: A name of `PENALTIES`, or None.
        weight: Of the penalty.
        noise: Of the penalty's points, as in `penalty_points`.

    Returns:
        The adversarial loss, the penalty, and the mean norm of the gradients at its points.
    """
    count = real.shape[0]
    points = [] if penalty is None else penalty_points(penalty, real, fake, **noise)
    # The penalised samples stand first; those of the loss among them are not judged twice.
    parts = [*points, *(x for x in (real, fake) if not any(_same(x, p) for p in points))]
    at = {name: _place(x, parts) * count for name, x in (("real", real), ("fake", fake))}
    inputs, scores = critic.forward(torch.cat(parts))
    of_real = scores[at["real"] : at["real"] + count]
    of_fake = scores[at["fake"] : at["fake"] + count]
    loss = discriminator_loss(objective, of_real, of_fake)
    slopes = discriminator_slopes(objective, of_real, of_fake)
    slope = torch.zeros_like(scores) if len(parts) > 2 else torch.empty_like(scores)
    for name, part in zip(("real", "fake"), slopes, strict=True):
        slope[at[name] : at[name] + count] = part
    if penalty is None:
        critic.write(critic.backward(inputs, slope), inputs)
        return loss, loss.new_zeros(()), loss.new_zeros(())
    # With unit cotangents the slopes multiply the inputs, to which the tangents are added: one
    # weight gradient for loss and penalty.
    deltas = critic.backward(inputs, torch.ones_like(scores))
    penalised = len(points) * count
    gradient = critic.input_cotangent([deltas[0][:penalised]])
    # The mean over all points, times the number of sets, is the sum of the sets' means.
    value, v, norms = penalty_gradient(penalty, gradient, weight * len(points))
    together = []
    for k, (x, t) in enumerate(zip(inputs, critic.tangents(inputs, v), strict=True)):
        if penalised == x.shape[0]:
            together.append(t.addcmul_(x, slope))
            continue
        together.append(torch.mul(x, slope, out=critic.room(f"input {k}", x, x.shape[1])))
        together[-1][:penalised] += t
    critic.write(deltas, together, slope)
    return loss, value, norms.mean()


@torch.no_grad()
def generators_turn(
    critic: Passes, real: Tensor, fake: Tensor, *, objective: str
) -> tuple[Tensor, Tensor]:
    """The generator's loss, and its derivative by the generated samples (N, D)."""
    pairs = get_objective(objective).pairs
    inputs, scores = critic.forward(torch.cat((fake, real)) if pairs else fake)
    of_fake, of_real = scores[: fake.shape[0]], scores[fake.shape[0] :] if pairs else None
    value = generator_loss(objective, of_fake, of_real)
    slope = generator_slope(objective, of_fake, of_real)
    deltas = critic.backward([x[: fake.shape[0]] for x in inputs] if pairs else inputs, slope)
    return value, critic.input_cotangent(deltas)


def _same(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr()


def _place(x: Tensor, parts: list[Tensor]) -> int:
    return next(k for k, part in enumerate(parts) if _same(x, part))
