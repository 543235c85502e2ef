"""A network together with what its values mean: images in, likelihoods and images out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfastgan.autoregressive.likelihood import LogisticMixture, Softmax
from pyfastgan.autoregressive.network import CausalNetwork
from pyfastgan.autoregressive.two_levels import TwoLevelPrior
from pyfastgan.data.datasets import check_range

Decode = Callable[[Any], Tensor]

_BATCH = 64


class PixelModel:
    """What `pyfastgan.autoregressive.load` returns.

    Args:
        network: A `PixelCNN`, a `GatedPixelCNN` or a `TwoLevelPrior`.
        codes: Whether its values are codes of another model, not grey levels or images.
        decode: Maps codes int64 (N, h, w), of two levels a pair with the coarser ones first, to images;
            without it the (finer) codes themselves are drawn, as grey levels.
    """

    def __init__(
        self,
        network: CausalNetwork | TwoLevelPrior,
        *,
        codes: bool = False,
        decode: Decode | None = None,
    ) -> None:
        self.network, self.codes, self.decode = network, codes, decode

    def sample(self, count: int, seed: int | None = None, labels: Tensor | None = None) -> Tensor:
        """Images (count, C, H, W) in [-1, 1]; the same seed gives the same images.

        Args:
            count: How many.
            seed: By default one is drawn from torch's generator.
            labels: int64 (count,) of a model with classes; by default each class in turn.
        """
        if labels is None and self.network.classes is not None:
            device = next(self.network.parameters()).device
            labels = torch.arange(count, device=device) % self.network.classes
        return self.images(self.network.sample(count, seed, labels))

    @torch.no_grad()
    def images(self, values: Tensor) -> Tensor:
        """The network's values as images in [-1, 1]."""
        values = values.cpu() if self.decode is not None else values
        codes = self.network.split(values) if isinstance(self.network, TwoLevelPrior) else values
        if self.decode is not None:
            return self.decode(codes)
        values = codes[1] if isinstance(codes, tuple) else codes
        likelihood = self.network.likelihood
        if isinstance(likelihood, Softmax):
            return (values[:, None] / ((likelihood.levels - 1) / 2)).sub_(1)
        return values

    def values(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], rounded to what the network takes; codes as they are.

        Raises:
            ValueError: On a CPU, images out of range.
        """
        if self.codes:
            return images
        return to_values(self.network.likelihood, images)

    @torch.no_grad()
    def nll(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """-ln p of images, rounded to the model's levels, or of codes: (N,) in nats.

        Raises:
            TypeError, ValueError: Images, codes or labels of another kind, shape or range.
        """
        values = self.values(images)
        return self.network.nll(values, labels if self.network.classes is not None else None)

    def bits_per_dim(self, dataset: Any) -> float:
        """The mean over a data set of `pyfastgan.data`, or of codes."""
        return self.mean_nll(dataset) / self.dims / math.log(2)

    def mean_nll(self, dataset: Any) -> float:
        """The same for an image, in nats."""
        held = getattr(dataset, "tensors", None) or getattr(dataset, "stored", None)
        device = next(self.network.parameters()).device
        total = 0.0
        for index in torch.arange(len(dataset)).split(_BATCH):
            if held is None:
                rows = [dataset[i] for i in index.tolist()]
                batch = [torch.stack([torch.as_tensor(x) for x in part]) for part in zip(*rows)]
            elif dataset.tensors is None:
                batch = list(dataset[index])
            else:
                batch = [part[index] for part in held if part is not None]
            total += self.nll(*(part.to(device) for part in batch[:2])).double().sum().item()
        return total / len(dataset)

    @property
    def dims(self) -> int:
        """Numbers in an image."""
        return math.prod(self.network.shape) * self.network.likelihood.dims


def to_values(likelihood: Softmax | LogisticMixture, images: Tensor) -> Tensor:
    """Images (N, C, H, W) in [-1, 1], rounded to the values of a likelihood."""
    check_range("images", images)
    levels = likelihood.levels if isinstance(likelihood, Softmax) else 256
    wide = images if images.dtype == torch.float64 else images.float()
    # In bfloat16 the sum would already have left the level.
    level = ((wide + 1) * ((levels - 1) / 2)).round()
    if isinstance(likelihood, Softmax):
        return level[:, 0].long()
    return (level / 127.5 - 1).to(images.dtype)
