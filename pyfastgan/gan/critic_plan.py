"""The plan of a critic: its layers as those of `linearised`, and when what of their values is free."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyfastgan.gan.linearised import Layer
from pyfastgan.gan.linearised_affine import Affine
from pyfastgan.gan.linearised_maps import Add, Bias, Concatenate, Multiply, Resample, Sum
from pyfastgan.gan.linearised_norms import Act, FixedNorm, GroupNorm, LayerNorm
from pyfastgan.gan.sources import Source


class Unsupported(Exception):
    """Why a critic cannot be taken apart, beginning with the name of the layer."""


@dataclass
class Plan:
    """The layers of a critic in the order of its forward pass.

    Value 0 is the samples, value 1 the condition.

    Args:
        layers: The layers.
        sources: What the effective weights are made of.
        output: The number of the critic's output, of shape (N, ...).
    """

    layers: list[Layer] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    output: int = -1
    # By value: whether it depends on the samples.
    of_samples: list[bool] = field(default_factory=lambda: [True, False])
    # By value: whether the penalty can give it a cotangent of second order.
    bends: list[bool] = field(default_factory=list)
    # By value: whether the T pass may overwrite it.
    owned: list[bool] = field(default_factory=list)
    # By layer: the values that no later layer takes.
    last_use: list[list[int]] = field(default_factory=list)

    def finish(self) -> None:
        """Lets biases join the activations behind them, and finds when what is free."""
        self._join_activations()
        makers = {layer.output: layer for layer in self.layers}
        users: dict[int, list[Layer]] = {}
        for layer in self.layers:
            for v in layer.inputs:
                users.setdefault(v, []).append(layer)
        for layer in self.layers:
            if not isinstance(layer, Act):
                continue
            before = makers.get(layer.inputs[0])
            # What comes out of products is new memory.
            after = users.get(layer.output, [])
            of_one = [isinstance(user, Affine) for user in after] == [True]
            alone = len(users[layer.inputs[0]]) == 1 and layer.inputs[0] != self.output
            layer.owns = (
                of_one and layer.output != self.output,
                isinstance(before, Affine) and alone,
            )
            if isinstance(before, Affine) and alone and layer.plain_slope is not None:
                before.slope, layer.joins = layer.plain_slope, True
                continue
            # A linear layer's bias is over the last dimension, the activation's over the second.
            if isinstance(before, Affine) and before.bias is not None:
                fits = before.conv is not None or before.matrix
            else:
                fits = isinstance(before, Bias)
            if fits and alone:
                layer.bias, before.joins = before.bias, True  # type: ignore[union-attr]
        count = len(self.of_samples)
        self.bends = [False] * count
        for layer in reversed(self.layers):
            for v in layer.inputs:
                others = [u for u in layer.inputs if u != v] or [v]
                if isinstance(layer, Multiply):
                    starts = any(self.of_samples[u] for u in others)
                else:
                    starts = layer.second_order and self.of_samples[v]
                self.bends[v] |= starts or self.bends[layer.output]
        self.owned = [False] * count
        for v, layer in makers.items():
            harmless = (Affine, Add, Resample, Sum)
            used = [isinstance(user, harmless) for user in users.get(v, [])]
            self.owned[v] = not layer.aliases and all(used) and v != self.output
            if isinstance(layer, (Concatenate, Multiply, GroupNorm, LayerNorm, FixedNorm)):
                self.owned[v] = False
        last = {v: k for k, layer in enumerate(self.layers) for v in layer.inputs}
        self.last_use = [[] for _ in self.layers]
        for v, k in last.items():
            self.last_use[k].append(v)

    def _join_activations(self) -> None:
        """Norms take the activation behind them, if nobody else looks at their output."""
        norms = {layer.output: layer for layer in self.layers if isinstance(layer, GroupNorm)}
        uses = [v for layer in self.layers for v in layer.inputs] + [self.output]
        for layer in [layer for layer in self.layers if isinstance(layer, Act)]:
            norm = norms.get(layer.inputs[0])
            plain = layer.gain == 1.0 and layer.clamp is None
            if norm is not None and plain and uses.count(norm.output) == 1:
                norm.act, norm.slope, norm.output = layer.act, layer.slope, layer.output
                self.layers.remove(layer)
