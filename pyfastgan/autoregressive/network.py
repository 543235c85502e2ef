"""What autoregressive networks share: p(x) = prod p(x_i | x_1 .. x_(i-1)) over pixels in raster order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan.autoregressive.likelihood import Likelihood

_SAMPLE_BATCH = 64


class Cache(Protocol):
    """What a network knows of the pixels so far. It stands at one pixel, and begins at the first."""

    def parameters(self) -> Tensor:
        """(N, planes): the distribution of the pixel where the cache stands. Called once a pixel."""
        ...

    def append(self, value: Tensor) -> None:
        """Take in that pixel's values, (N,) or (N, channels), and go on to the next one."""
        ...


class CausalNetwork(nn.Module, ABC):
    """Embeds the pixels, leaves the middle to its children, and ends in two 1x1 convolutions.

    Args:
        likelihood: What a pixel is, `Softmax` or `LogisticMixture`.
        shape: Height and width of the images.
        width: Channels of the maps.
        classes: Number of classes to condition on, or None.
        above: Of a network that is conditioned on a map of codes of a coarser level: how many codes
            there are, and the map's height and width.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        shape: tuple[int, int],
        *,
        width: int,
        classes: int | None,
        above: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("height", shape[0]), ("width", shape[1])):
            check_count(f"{name} of the images", count)
        check_count("width", width)
        if classes is not None:
            check_count("classes", classes)
        self.likelihood, self.shape, self.width = likelihood, (shape[0], shape[1]), width
        self.classes, self.above = classes, above
        self.embed = likelihood.embedding(width)
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, likelihood.planes, 1),
        )

    def forward(
        self, values: Tensor, labels: Tensor | None = None, above: Tensor | None = None
    ) -> Tensor:
        """Parameters (N, planes, H, W): those of a pixel depend only on the pixels before it.

        Args:
            values: As the likelihood has them: int64 (N, H, W), or images (N, channels, H, W).
            labels: int64 (N,); given if and only if the network has classes.
            above: int64 (N, h', w'), a coarser map of codes; given if and only if the network is
                conditioned on one.

        Raises:
            TypeError, ValueError: Values, labels or codes of another kind, shape or (on a CPU) range.
        """
        self.likelihood.check(values, self.shape)
        self.check_conditions(labels, above, len(values))
        pixels = self.likelihood.pixels(values, next(self.parameters()).dtype)
        embedded = self.embed(pixels).movedim(-1, 1).contiguous()
        parameters: Tensor = self.head(self.features(embedded, labels, above))
        return parameters

    @abstractmethod
    def features(
        self, embedded: Tensor, labels: Tensor | None, above: Tensor | None = None
    ) -> Tensor:
        """Embedded pixels (N, width, H, W) to causal features of the same shape."""

    @abstractmethod
    def begin(self, count: int, labels: Tensor | None = None, above: Tensor | None = None) -> Cache:
        """A cache for `count` images that stands at the first pixel. Use it without gradients, and
        while the weights stay as they are."""

    def nll_of(self, values: Tensor, parameters: Tensor) -> Tensor:
        """-ln p(values), (N,) in nats, from what `forward` returned."""
        return self.likelihood.nll(values, parameters)

    def nll(
        self, values: Tensor, labels: Tensor | None = None, above: Tensor | None = None
    ) -> Tensor:
        """-ln p(values), (N,) in nats."""
        return self.nll_of(values, self(values, labels, above))

    @torch.no_grad()
    def sample(
        self,
        count: int,
        seed: int | None = None,
        labels: Tensor | None = None,
        above: Tensor | None = None,
        *,
        stream: int = 0,
    ) -> Tensor:
        """Draw images pixel by pixel; each pixel costs the work of one pixel.

        Args:
            count: How many.
            seed: The same seed gives the same images, image i for any count. By default one is drawn
                from torch's generator.
            labels: int64 (count,), as in `forward`.
            above: int64 (count, h', w'), as in `forward`.
            stream: Of the first pixel's noise; each pixel has one of its own.

        Returns:
            Values as `forward` takes them.
        """
        check_count("count", count)
        self.check_conditions(labels, above, count)
        chosen = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        device = next(self.parameters()).device
        values = self.likelihood.empty(count, self.shape, device)
        for first in range(0, count, _SAMPLE_BATCH):
            part = slice(first, min(first + _SAMPLE_BATCH, count))
            conditions = (None if each is None else each[part] for each in (labels, above))
            cache = self.begin(part.stop - first, *conditions)
            for pixel in range(self.shape[0] * self.shape[1]):
                drawn = self.likelihood.draw(cache.parameters(), chosen, stream + pixel, first)
                row, column = divmod(pixel, self.shape[1])
                values[part, ..., row, column] = drawn
                cache.append(drawn)
        return values

    def check_conditions(self, labels: Tensor | None, above: Tensor | None, count: int) -> None:
        """Raise unless the labels are those of `count` images of this network's classes, and the codes
        those of as many maps of the level above."""
        self._check_labels(labels, count)
        if self.above is None:
            if above is not None:
                raise ValueError("above must be None: the network has no level above it")
            return
        levels, *shape = self.above
        if above is None:
            raise ValueError("above must be given: the network is conditioned on a coarser map")
        if above.dtype != torch.int64 or above.shape != (count, *shape):
            raise ValueError(
                f"above must be int64 of shape ({count}, {shape[0]}, {shape[1]}),"
                f" got {above.dtype} of shape {tuple(above.shape)}"
            )
        if above.device.type == "cpu" and len(above):
            low, high = (int(bound) for bound in above.aminmax())
            if low < 0 or high >= levels:
                raise ValueError(f"above must lie in [0, {levels}), got {low} to {high}")

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        if self.classes is None:
            if labels is not None:
                raise ValueError("labels must be None: the network was made without classes")
            return
        if labels is None:
            raise ValueError(f"labels must be given: the network has {self.classes} classes")
        if labels.dtype != torch.int64 or labels.shape != (count,):
            raise ValueError(
                f"labels must be int64 of shape ({count},),"
                f" got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu" and len(labels):
            low, high = (int(bound) for bound in labels.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(f"labels must lie in [0, {self.classes}), got {low} to {high}")

    def point_head(self, features: Tensor) -> Tensor:
        """The head for single pixels: (N, width) to (N, planes)."""
        _, first, _, last = self.head
        return at_point(last, at_point(first, features.relu()).relu())


def at_point(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution over single pixels, or the windows of pixels that its kernel covers."""
    assert isinstance(convolution, nn.Conv2d)
    return functional.linear(x, convolution.weight.flatten(1), convolution.bias)


def class_vectors(classes: int | None, width: int) -> nn.Embedding | None:
    """A vector a class, to be added to maps; small, so that all classes begin alike."""
    if classes is None:
        return None
    vectors = nn.Embedding(classes, width)
    nn.init.normal_(vectors.weight, std=0.05)
    return vectors


def check_count(name: str, count: int) -> None:
    """Raise unless it is an int of at least 1."""
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be an int, got {count!r}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")


def check_kernel(name: str, size: int, *, at_least: int = 1) -> None:
    """Raise unless it is an odd int: a kernel of even size has no pixel in its middle."""
    check_count(name, size)
    if size % 2 == 0 or size < at_least:
        raise ValueError(f"{name} must be odd and at least {at_least}, got {size}")
