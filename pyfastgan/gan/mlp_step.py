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

linear_out: Any = linear  # which is declared without `out`
_relu_backward = torch.ops.aten.threshold_backward.grad_input


class Passes:
    """The passes of one network, to be called under `torch.no_grad()`.

    What they return lies in memory that the next call of the same pass writes anew: maps of this
    size, given back and taken again, cost more in page faults than in products. And they write into
    what they were given where nobody looks at it again, so that the maps of a step fit the cache.

    Args:
        network: Its parameters are read and their `.grad` is overwritten, never added to.
    """

    def __init__(self, network: MLPGenerator | MLPCritic) -> None:
        layers = [layer for layer in network.main if isinstance(layer, nn.Linear)]
        self._layers = [(layer.weight, layer.bias) for layer in layers]
        self._kept: dict[tuple[str, int, int], Tensor] = {}

    def room(self, use: str, like: Tensor, columns: int) -> Tensor:
        """Uninitialised memory (N, columns) for that use, the same at every call."""
        count = like.shape[0]  # where len() goes through Python
        found = self._kept.get((use, count, columns))
        if found is None or found.dtype != like.dtype or found.device != like.device:
            # Room for more samples serves fewer, too: both players' turns stay in the cache.
            longer = [
                y
                for (name, n, c), y in self._kept.items()
                if (name, c, y.dtype, y.device) == (use, columns, like.dtype, like.device)
                and n > count
            ]
            found = longer[0][:count] if longer else like.new_empty(count, columns)
            self._kept[use, count, columns] = found
        return found

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What enters each layer, (N, units) each, and the output."""
        values, last = [x], len(self._layers) - 1
        for k, (weight, bias) in enumerate(self._layers):
            y = self.room(f"value {k}", x, weight.shape[0])
            linear_out(values[-1], weight, bias, out=y)
            values.append(y if k == last else y.relu_())
        return values[:-1], values[-1]

    def _cotangent(self, k: int, delta: Tensor) -> Tensor:
        """What the cotangent of layer k's output makes of its input, in memory that all layers share."""
        weight = self._layers[k][0]
        found = self.room("scratch", delta, weight.shape[1])
        if weight.shape[0] == 1:  # a product of one term takes as long as one of many
            return torch.mul(delta, weight, out=found)
        return torch.mm(delta, weight, out=found)

    def backward(self, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
        """The cotangents of each layer's output, before its ReLU, from that of the network's."""
        deltas = [cotangent]
        for k in range(len(self._layers) - 1, 0, -1):
            delta = self.room(f"cotangent {k}", cotangent, inputs[k].shape[1])
            found = self._cotangent(k, deltas[-1])
            deltas.append(_relu_backward(found, inputs[k], 0, grad_input=delta))
        return deltas[::-1]

    def input_cotangent(self, delta: Tensor) -> Tensor:
        """The cotangent of what entered the network, from that of the first layer's output."""
        # Written in the order of memory: a product with two columns takes three times as long.
        return linear(delta, self._layers[0][0].t().contiguous())

    def overwrite(self, inputs: list[Tensor], cotangent: Tensor, write: bool = True) -> Tensor:
        """`backward` with the cotangents in the place of the inputs, and the gradients if they are
        to be written: the cotangent of the first layer's output."""
        delta = cotangent
        for k in range(len(self._layers) - 1, -1, -1):
            if write:
                self._write(k, delta, inputs[k])
            if k:
                found = self._cotangent(k, delta)
                delta = _relu_backward(found, inputs[k], 0, grad_input=inputs[k])
        return delta

    def write(
        self, deltas: list[Tensor], inputs: list[Tensor], v: Tensor, slope: Tensor | None
    ) -> None:
        """The gradients under a penalty, whose derivative by the gradients of the first samples is v.

        Those samples' inputs are overwritten by `slope` (N, 1) times themselves, or nothing where
        they have no loss, and the tangents, which the linearised network makes of v.
        """
        count, tangent = v.shape[0], v
        for k, (weight, _) in enumerate(self._layers):
            x = inputs[k][:count]
            following = None
            if k + 1 < len(self._layers):
                following = self.room("scratch", v, weight.shape[0])
                linear_out(tangent, weight, None, out=following)
                y = inputs[k + 1][:count]
                room = y if slope is None else self.room(f"tangent {k}", v, weight.shape[0])
            if slope is not None:
                torch.addcmul(tangent, x, slope, out=x)
            elif k == 0:
                x.copy_(v)
            self._write(k, deltas[k], inputs[k], count, slope)
            if following is not None:
                tangent = _relu_backward(following, y, 0, grad_input=room)

    def _write(
        self, k: int, dy: Tensor, x: Tensor, count: int = 0, slope: Tensor | None = None
    ) -> None:
        """The gradients of a layer; that of the bias from the cotangents behind the first `count`, and
        of those times `slope`."""
        weight, bias = self._layers[k]
        if weight.grad is None or bias.grad is None:
            weight.grad, bias.grad = torch.empty_like(weight), torch.empty_like(bias)
        if x.shape[1] < dy.shape[1]:  # as above
            weight.grad.copy_(torch.mm(x.t(), dy).t())
        else:
            torch.mm(dy.t(), x, out=weight.grad)
        torch.sum(dy[count:] if count else dy, 0, out=bias.grad)
        if slope is not None:
            bias.grad.addmv_(dy[:count].t(), slope[:, 0])


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
    slope = torch.empty_like(scores)
    for name, part in zip(("real", "fake"), slopes, strict=True):
        slope[at[name] : at[name] + count] = part
    if penalty is None:
        critic.overwrite(inputs, slope)
        return loss, loss.new_zeros(()), loss.new_zeros(())
    # With unit cotangents the slopes multiply the inputs, to which the tangents are added: one
    # weight gradient for loss and penalty.
    penalised = len(points) * count
    judged = len(parts) == 2  # those of the penalty, too
    own = slope[:penalised].clone() if judged else None
    slope[:penalised] = 1
    deltas = critic.backward(inputs, slope)
    gradient = critic.input_cotangent(deltas[0][:penalised])
    # The mean over all points, times the number of sets, is the sum of the sets' means.
    value, v, norms = penalty_gradient(penalty, gradient, weight * len(points))
    critic.write(deltas, inputs, v, own)
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
    first = [x[: fake.shape[0]] for x in inputs] if pairs else inputs
    return value, critic.input_cotangent(critic.overwrite(first, slope, write=False))


def _same(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr()


def _place(x: Tensor, parts: list[Tensor]) -> int:
    return next(k for k, part in enumerate(parts) if _same(x, part))
