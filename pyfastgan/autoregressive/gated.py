"""Gated PixelCNN: van den Oord et al. (2016), "Conditional image generation with PixelCNN decoders", with
the causal attention of Chen et al. (2018), "PixelSNAIL", as an option."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.autoregressive.likelihood import Likelihood
from pyfastgan.autoregressive.network import (
    CausalNetwork,
    at_point,
    check_count,
    check_kernel,
    class_vectors,
)


def _gate(x: Tensor) -> Tensor:
    """tanh of the first half of the channels times sigmoid of the second."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


class _Layer(nn.Module):
    """A layer of both stacks (figure 2 of the paper).

    The vertical stack at a pixel sees all of the rows up to its own; the horizontal stack sees the
    vertical one from a row above, and of its own row the pixels to the left, with its own feature
    except in the first layer, where that would be the pixel itself. Kernels that cover just these
    pixels need no mask.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int,
        classes: int | None,
        dropout: float,
        *,
        first: bool,
        mapped: bool,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.first, self.reach = first, kernel_size // 2
        self.vertical = nn.Conv2d(width, 2 * width, (self.reach + 1, kernel_size))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.reach + (not first)))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.condition = class_vectors(classes, 4 * width)
        self.context = nn.Conv2d(width, 4 * width, 1, bias=False) if mapped else None

    def conditions(
        self, labels: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor | float, Tensor | float]:
        """What a class and the level above add to the vertical and the horizontal stack,
        (N, 2 width, 1 or H, 1 or W) each."""
        total: Tensor | None = None
        if self.condition is not None:
            total = self.condition(labels)[:, :, None, None]
        if self.context is not None:
            maps = self.context(context)
            total = maps if total is None else total + maps
        if total is None:
            return 0.0, 0.0
        of_v, of_h = total.chunk(2, 1)
        return of_v, of_h

    def forward(
        self, v: Tensor, h: Tensor, labels: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        of_v, of_h = self.conditions(labels, context)
        v = self.vertical(functional.pad(v, (self.reach, self.reach, self.reach, 0)))
        above = functional.pad(v, (0, 0, 1, -1))
        left = functional.pad(h, (self.reach, -1 if self.first else 0))
        y = _gate(self.horizontal(left) + self.link(above) + of_h)
        y = self.out(self.dropout(y))
        return _gate(v + of_v), y if self.first else h + y


class _Attention(nn.Module):
    """Each pixel attends to those before it, whose own values it may see.

    A key of zeros with a value of zeros comes first, so that there is something to attend to.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = math.gcd(heads, width)
        self.query = nn.Linear(width + 2, width)
        self.key = nn.Linear(2 * width + 2, width)
        self.value = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, width)

    def queries(self, h: Tensor, places: Tensor) -> Tensor:
        """(N, L, width) with places (L, 2), to (N, heads, L, width / heads)."""
        return self._heads(self.query(torch.cat((h, places.expand(len(h), -1, -1)), -1)))

    def memories(self, h: Tensor, embedded: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the same shape."""
        known = torch.cat((h, embedded), -1)
        key = self.key(torch.cat((known, places.expand(len(h), -1, -1)), -1))
        return self._heads(key), self._heads(self.value(known))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        places = _places(h.shape[2:], h)
        flat, pixels = (x.flatten(2).transpose(1, 2) for x in (h, embedded))
        query = self.queries(flat, places)
        memories = self.memories(flat, pixels, places)
        # Shifted by one, the diagonal of the causal mask means the pixel before.
        key, value = (functional.pad(x, (0, 0, 1, -1)) for x in memories)
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        y = self.out(y.transpose(1, 2).flatten(2))
        return h + cast("Tensor", y).transpose(1, 2).unflatten(2, h.shape[2:])


def _places(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    """Row and column of each pixel, (H W, 2) in [-1/2, 1/2)."""
    axes = (torch.arange(size, dtype=like.dtype, device=like.device) / size - 0.5 for size in shape)
    return torch.cartesian_prod(*axes).view(-1, 2)


class _Above(nn.Module):
    """A coarser map of codes, (N, h', w'), as features of the network's own size."""

    def __init__(self, levels: int, width: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(levels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1),
            )
            for _ in range(2)
        )
        self.spread = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embed(codes).movedim(-1, 1).contiguous()
        for block in self.blocks:
            x = x + block(x)
        return cast("Tensor", self.spread(functional.interpolate(x, self.shape)).relu())


class GatedPixelCNN(CausalNetwork):
    """Gated PixelCNN without a blind spot.

    Args:
        likelihood: What a pixel is.
        shape: Height and width of the images.
        layers: Gated layers, the first one included.
        width: Channels of each stack.
        kernel_size: Of the layers but the first; odd.
        first_kernel_size: Of the first layer; odd, at least 3.
        attention: A causal attention after every so many layers; 0 for none. Its cost a pixel grows
            with the number of pixels before.
        dropout: In training, the share of each layer's features that is dropped.
        classes: Number of classes to condition on, or None.
        above: (levels, height, width) of a coarser map of codes to condition on, as the bottom level of
            VQ-VAE-2 is on its top level; or None.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        shape: tuple[int, int],
        *,
        layers: int = 6,
        width: int = 64,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        attention: int = 0,
        dropout: float = 0.0,
        classes: int | None = None,
        above: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(likelihood, shape, width=width, classes=classes, above=above)
        check_count("layers", layers)
        check_kernel("kernel_size", kernel_size)
        check_kernel("first_kernel_size", first_kernel_size, at_least=3)
        if attention:
            check_count("attention", attention)
        self.coarse = None if above is None else _Above(above[0], width, self.shape)
        self.layers = nn.ModuleList(
            _Layer(
                width,
                first_kernel_size if first else kernel_size,
                classes,
                dropout,
                first=first,
                mapped=above is not None,
            )
            for first in [True] + [False] * (layers - 1)
        )
        self.attentions = nn.ModuleDict(
            {
                str(index): _Attention(width)
                for index in range(layers)
                if attention and (index + 1) % attention == 0
            }
        )

    def features(
        self, embedded: Tensor, labels: Tensor | None, above: Tensor | None = None
    ) -> Tensor:
        """As the base class says."""
        v = h = embedded
        context = self.context(above)
        for index, layer in enumerate(self.layers):
            v, h = layer(v, h, labels, context)
            if str(index) in self.attentions:
                h = self.attentions[str(index)](h, embedded)
        return h

    def context(self, above: Tensor | None) -> Tensor | None:
        """The level above as features (N, width, H, W), or None without one."""
        if self.coarse is None:
            return None
        features: Tensor = self.coarse(above)
        return features

    def begin(
        self, count: int, labels: Tensor | None = None, above: Tensor | None = None
    ) -> _Cache:
        """As the base class says."""
        self.check_conditions(labels, above, count)
        return _Cache(self, count, labels, self.context(above))


class _LayerCache:
    """One layer's inputs: of the vertical stack the last rows, of the horizontal one this row."""

    def __init__(
        self,
        layer: _Layer,
        count: int,
        shape: tuple[int, int],
        labels: Tensor | None,
        context: Tensor | None,
    ) -> None:
        reach, (width, inputs) = layer.reach, layer.vertical.weight.shape[:2]
        self.layer, self.reach, self.taps = layer, reach, reach + (not layer.first)
        self.row, self.height = 0, shape[0]
        new = layer.vertical.weight.new_zeros
        self.rows = new(count, inputs, reach + 1, shape[1] + 2 * reach)
        self.left = new(count, shape[1] + reach, inputs)
        kernel = layer.horizontal.weight[:, :, 0]
        self.weight = kernel.transpose(1, 2).flatten(1).t().contiguous()
        of_v, of_h = layer.conditions(labels, context)
        bias = cast("Tensor", layer.horizontal.bias)[:, None, None]
        self.of_v, self.bias = (
            (part + x).expand(count, width, *shape)
            for part, x in ((torch.zeros_like(bias), of_v), (bias, of_h))
        )
        # Above the first row there are zeros.
        self._link(new(count, width, 1, shape[1]))

    def _link(self, above: Tensor) -> None:
        """What this row takes from the vertical stack of the row above."""
        bias = self.bias[:, :, self.row : self.row + 1]
        self.links = (self.layer.link(above) + bias)[:, :, 0].permute(2, 0, 1).contiguous()

    def next_row(self, v: Tensor) -> Tensor:
        """Take in a row (N, inputs, W) of the vertical stack that is whole; give the layer's own."""
        self.rows = torch.cat(
            (self.rows[:, :, 1:], functional.pad(v, (self.reach, self.reach))[:, :, None]), 2
        )
        seen = self.layer.vertical(self.rows)
        made = _gate(seen + self.of_v[:, :, self.row : self.row + 1])[:, :, 0]
        self.row += 1
        if self.row < self.height:
            self._link(seen)
        return made

    def put(self, column: int, h: Tensor) -> None:
        self.left[:, column + self.reach] = h

    def value(self, column: int) -> Tensor:
        """What the layer adds to the horizontal stack, (N, width)."""
        window = self.left[:, column : column + self.taps].flatten(1)
        gates = torch.addmm(self.links[column], window, self.weight)
        return at_point(self.layer.out, _gate(gates))


class _AttentionCache:
    """Keys and values of the pixels so far, behind those of zeros."""

    def __init__(self, attention: _Attention, count: int, pixels: int) -> None:
        weight = attention.value.weight
        size = (count, attention.heads, pixels + 1, len(weight) // attention.heads)
        self.attention = attention
        self.keys, self.values = weight.new_zeros(size), weight.new_zeros(size)

    def value(self, h: Tensor, pixel: int, places: Tensor) -> Tensor:
        self.h = h
        query = self.attention.queries(h[:, None], places[pixel : pixel + 1])
        keys, values = (kept[:, :, : pixel + 1] for kept in (self.keys, self.values))
        y = functional.scaled_dot_product_attention(query, keys, values)
        return cast("Tensor", self.attention.out(y.transpose(1, 2).flatten(1)))

    def append(self, embedded: Tensor, pixel: int, places: Tensor) -> None:
        place = places[pixel : pixel + 1]
        key, value = self.attention.memories(self.h[:, None], embedded[:, None], place)
        self.keys[:, :, pixel + 1], self.values[:, :, pixel + 1] = key[:, :, 0], value[:, :, 0]


class _Cache:
    """The layers' caches. The vertical stack is evaluated a row at a time, the horizontal one a pixel
    at a time, so that all pixels together cost one forward pass."""

    def __init__(
        self, network: GatedPixelCNN, count: int, labels: Tensor | None, context: Tensor | None
    ) -> None:
        self.network, self.pixel = network, 0
        layers = cast("list[_Layer]", list(network.layers))
        self.layers = [
            _LayerCache(layer, count, network.shape, labels, context) for layer in layers
        ]
        pixels = network.shape[0] * network.shape[1]
        self.attentions = {
            int(index): _AttentionCache(cast("_Attention", attention), count, pixels)
            for index, attention in network.attentions.items()
        }
        self.places = _places(network.shape, layers[0].out.weight)

    def parameters(self) -> Tensor:
        column = self.pixel % self.network.shape[1]
        h = self.layers[0].value(column)
        for index, layer in enumerate(self.layers):
            if index:
                layer.put(column, h)
                h = h + layer.value(column)
            if index in self.attentions:
                h = h + self.attentions[index].value(h, self.pixel, self.places)
        return self.network.point_head(h)

    def append(self, value: Tensor) -> None:
        embedded, first = self.network.embed(value), self.layers[0]
        first.put(self.pixel % self.network.shape[1], embedded)
        for attention in self.attentions.values():
            attention.append(embedded, self.pixel, self.places)
        self.pixel += 1
        if self.pixel % self.network.shape[1] == 0:
            v = first.left[:, first.reach :].transpose(1, 2)
            for layer in self.layers:
                v = layer.next_row(v)
