"""The passes over the layers of a critic's plan, one function each: forward, cotangents, and tangents
with the weight gradients on their way. `passes` puts a step together of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyfastgan.gan.critic_plan import Plan
from pyfastgan.gan.linearised import Found, Kept, added, per_sample
from pyfastgan.gan.linearised_affine import Affine
from pyfastgan.gan.sources import Pull

Gradients = list[tuple[nn.Parameter, Tensor]]

# oneDNN's convolutions are faster so, and pass on the layout to all that follows.
_CHANNELS_LAST = torch.backends.mkldnn.is_available()


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
    early: dict[int, Found] | None = None,
) -> tuple[list[Tensor | None], Tensor | None]:
    """The cotangents that layers with weights or of second order need, if they are to be kept, and
    those of the first `wanted` samples.

    Into `early`, where it is given, the gradients of layers whose backward pass finds them on its way, for
    cotangents that nothing multiplies and inputs that no tangent joins.
    """
    patches = output[0].numel()
    first = per_sample(start if patches == 1 else start / patches, output).expand_as(output)
    cotangents: dict[int, Tensor] = {plan.output: first.to(output.dtype)}
    deltas: list[Tensor | None] = [None] * len(plan.layers)
    for k in range(len(plan.layers) - 1, -1, -1):
        layer = plan.layers[k]
        dy = cotangents.pop(layer.output, None)
        if dy is None:
            continue
        on_its_way = early is not None and not layer.affine and bool(layer.weights())
        on_its_way = on_its_way and layer.inputs != (0,)  # whose backward pass is left out
        if keep and not on_its_way and (layer.weights() or layer.second_order):
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
        elif on_its_way:
            assert early is not None
            found, early[k] = layer.second(weights, dy, kept[k])
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
    early: dict[int, Found] | None = None,
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
            found[k] = gradient if before is None else added(before, gradient)

    for gradients in (early or {}).values():
        for number, gradient in gradients:
            add(number, gradient)
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
        elif dy is not None and layer.weights() and not (only_points and count == len(dy)):
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
