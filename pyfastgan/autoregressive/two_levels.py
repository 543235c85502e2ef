"""A prior over the codes of two levels: p(top) p(bottom | top), as Razavi, van den Oord & Vinyals (2019),
"Generating diverse high-fidelity images with VQ-VAE-2", section 3.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyfastgan.autoregressive.gated import GatedPixelCNN
from pyfastgan.autoregressive.likelihood import Softmax


class TwoLevelPrior(nn.Module):
    """Two networks over rows of codes: the top map first, the bottom map given it.

    Values are int64 (N, h' w' + h w): the pixels of the top map in raster order, then those of the
    bottom map.

    Args:
        top: Over the coarser map (h', w'), usually with attention, since it decides on the whole image.
        bottom: Over the finer map (h, w), conditioned on the coarser one.

    Raises `ValueError` where `bottom` is conditioned on something else.
    """

    def __init__(self, top: GatedPixelCNN, bottom: GatedPixelCNN) -> None:
        super().__init__()
        assert isinstance(top.likelihood, Softmax)
        wanted = (top.likelihood.levels, *top.shape)
        if bottom.above != wanted:
            raise ValueError(f"bottom must have above={wanted} like the top, got {bottom.above}")
        self.top, self.bottom = top, bottom
        self.likelihood, self.classes = bottom.likelihood, bottom.classes
        self._count = top.shape[0] * top.shape[1]
        self.shape = (self._count + bottom.shape[0] * bottom.shape[1],)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as maps, int64 (N, h', w') and (N, h, w).

        Raises:
            ValueError: Rows of another length.
        """
        if values.ndim != 2 or values.shape[1:] != self.shape:
            raise ValueError(
                f"values must be of shape (N, {self.shape[0]}), got {tuple(values.shape)}"
            )
        top, bottom = values[:, : self._count], values[:, self._count :]
        return top.unflatten(1, self.top.shape), bottom.unflatten(1, self.bottom.shape)

    def forward(self, values: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The parameters of both maps, as `GatedPixelCNN.forward` gives and refuses them."""
        top, bottom = self.split(values)
        return self.top(top, labels), self.bottom(bottom, labels, top)

    def nll_of(self, values: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
        """-ln p(values), (N,) in nats, from what `forward` returned."""
        top, bottom = self.split(values)
        return self.top.nll_of(top, parameters[0]) + self.bottom.nll_of(bottom, parameters[1])

    def nll(self, values: Tensor, labels: Tensor | None = None) -> Tensor:
        """-ln p(values), (N,) in nats."""
        return self.nll_of(values, self(values, labels))

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None, labels: Tensor | None = None) -> Tensor:
        """Rows of codes, level by level and pixel by pixel; each pixel costs the work of one pixel.

        Args:
            count: How many.
            seed: The same seed gives the same codes, row i for any count. By default one is drawn
                from torch's generator.
            labels: int64 (count,), of a network with classes.
        """
        chosen = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        top = self.top.sample(count, chosen, labels)
        bottom = self.bottom.sample(count, chosen, labels, top, stream=self._count)
        return torch.cat((top.flatten(1), bottom.flatten(1)), 1)
