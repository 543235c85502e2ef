"""Variational autoencoders (Kingma & Welling 2014, arXiv 1312.6114) and the bounds they train by.

With the encoder's q(z|x) = N(mean, exp(logvar)), the prior p(z) = N(0, 1) and the decoder's p(x|z),
in nats:

    ELBO(x)   = E_q log p(x|z) - KL(q(z|x) || p(z)) = log p(x) - KL(q(z|x) || p(z|x))
    IWAE_K(x) = E log 1/K sum_k w_k,  w_k = p(x|z_k) p(z_k) / q(z_k|x),  z_k from q(z|x)

ELBO = IWAE_1 <= IWAE_K <= IWAE_K+1 <= log p(x) (Burda et al. 2016, arXiv 1509.00519, theorem 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfastgan._names import check_choice
from pyfastgan.data.datasets import check_range
from pyfastgan.ops import (
    bernoulli_nll,
    gaussian_nll,
    random_normal,
    random_uniform,
    reparameterize,
)

LIKELIHOODS = ("bernoulli", "gaussian")
# Decoded at once by `nll` and `sample`, so that large counts fit in memory.
_ROWS = 4096
# A byte's step on images in [-1, 1].
BYTE = 1 / 127.5


class VAE(nn.Module):
    """A variational autoencoder of an encoder and a decoder.

    Args:
        encoder: Maps x (N, ...) to (N, 2 latent_dim), mean and log-variance one after the other. x is
            given to it in [-1, 1] where the likelihood is Bernoulli's.
        decoder: Maps z (N, latent_dim) to x's shape: logits, or means.
        latent_dim: Numbers in a latent vector.
        likelihood: "bernoulli", or "gaussian" with one variance for all, which is learned.
        classes: Of a conditional model, whose networks take one-hot classes (N, classes) as a second
            argument.

    x is what the decoder has a likelihood of; `observe` makes it of images.

    Raises `ValueError` for an unknown likelihood, a latent_dim below 1, and classes below 1; the
    methods where labels are missing, not wanted, of another shape or dtype, or out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_dim: int,
        likelihood: str = "bernoulli",
        classes: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("likelihood", likelihood, LIKELIHOODS)
        for name, count in (("latent_dim", latent_dim), ("classes", classes)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.likelihood, self.classes = latent_dim, likelihood, classes
        if likelihood == "gaussian":
            self.logvar = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int | None = None,
        seed: int | None = None,
        stream: int = 0,
        sample_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The two parts of a bound, each to be minimised, in nats.

        Args:
            x: (N, ...).
            labels: int64 (N,), of a conditional model.
            samples: K latent vectors for each x; None is one, with the divergence in closed form.
            seed, stream, sample_offset: Of the noise, as in `pyfastgan.ops.random_normal`.

        Returns:
            -log p(x|z) and KL(q || p), both (N,): their sum estimates -ELBO. With `samples` -log
            p(x|z_k) and log q(z_k|x)/p(z_k), both (N, K), for `importance_bound`.
        """
        one_hot = self._one_hot(labels, len(x))
        mean, logvar = self.encode(x, labels)
        noise = {"stream": stream, "sample_offset": sample_offset}
        if samples is None:
            z, kl = reparameterize(mean, logvar, seed, **noise)  # type: ignore[arg-type]
            return self._nll(x, self._run(self.decoder, z, one_hot)), kl
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        shape = (len(x), samples, self.latent_dim)
        e = random_normal(shape, seed, dtype=mean.dtype, device=mean.device, **noise)  # type: ignore[arg-type]
        z = mean[:, None] + torch.exp(0.5 * logvar)[:, None] * e
        ratio = 0.5 * (z.square() - e.square() - logvar[:, None]).sum(2)
        if one_hot is not None:
            one_hot = one_hot.repeat_interleave(samples, 0)
        output = self._run(self.decoder, z.flatten(0, 1), one_hot)
        nll = self._nll(x.repeat_interleave(samples, 0), output)
        return nll.view(-1, samples), ratio

    def encode(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), both (N, latent_dim)."""
        one_hot = self._one_hot(labels, len(x))
        inputs = 2 * x - 1 if self.likelihood == "bernoulli" else x
        mean, logvar = self._run(self.encoder, inputs, one_hot).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of p(x|z) as images in [-1, 1]."""
        output = self._run(self.decoder, z, self._one_hot(labels, len(z)))
        if self.likelihood == "bernoulli":
            return 2 * torch.sigmoid(output) - 1
        return output.clamp(-1, 1)

    def observe(
        self, images: Tensor, seed: int | None = None, *, stream: int = 0, sample_offset: int = 0
    ) -> Tensor:
        """What the likelihood is of: an observation drawn for each image in [-1, 1].

        Bernoulli: pixels 0 or 1, with the pixel's brightness as probability of a 1 (as Burda et al. do
        anew for every batch). Gaussian: the image with uniform noise of one step of a byte, without
        which the density of pixels that are always the same has no bound.

        Raises `ValueError`, on a CPU, for images out of range.
        """
        check_range("images", images)
        u = random_uniform(
            tuple(images.shape),
            seed,
            stream=stream,
            sample_offset=sample_offset,
            dtype=images.dtype,
            device=images.device,
        )
        if self.likelihood == "bernoulli":
            return torch.lt(u.mul_(2).sub_(1), images).to(images.dtype)
        return images + BYTE * (u - 0.5)

    @torch.no_grad()
    def nll(
        self,
        x: Tensor,
        samples: int = 50,
        labels: Tensor | None = None,
        *,
        seed: int | None = 0,
        sample_offset: int = 0,
    ) -> Tensor:
        """An estimate of -log p(x) in nats by importance sampling, (N,); on average too large, the
        less so the more samples are taken. The noise of an x is the same in any batch.

        Args:
            x: (N, ...).
            samples: K.
            labels: int64 (N,), of a conditional model.
            seed: Of the noise.
            sample_offset: The number of the first x.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        rows = max(1, _ROWS // samples)
        starts = range(0, len(x), rows)
        parts = [
            -importance_bound(
                *self(
                    x[start : start + rows],
                    None if labels is None else labels[start : start + rows],
                    samples=samples,
                    seed=seed,
                    sample_offset=sample_offset + start,
                )
            )
            for start in starts
        ]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def bits_per_dim(self, nll: Tensor, size: int) -> Tensor:
        """Nats of an x of `size` numbers as bits for each; Gaussian: with bytes as the unit of x."""
        bits = nll / (size * math.log(2))
        return bits if self.likelihood == "bernoulli" else bits - math.log2(BYTE)

    def latents(self, count: int, seed: int | None = None) -> Tensor:
        """Latent vectors (count, latent_dim) from the prior; vector i is the same for any count."""
        weight = next(self.parameters())
        return random_normal(
            (count, self.latent_dim), seed, dtype=weight.dtype, device=weight.device
        )

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None, labels: Tensor | None = None) -> Tensor:
        """Images (count, C, H, W) in [-1, 1]; image i is the same for any count, up to
        rounding. A conditional model takes the classes in turns where no labels are given."""
        z = self.latents(count, seed)
        if labels is None and self.classes is not None:
            labels = torch.arange(count, device=z.device) % self.classes
        several = [None] * (1 + count // _ROWS) if labels is None else labels.split(_ROWS)
        return torch.cat([self.decode(*pair) for pair in zip(z.split(_ROWS), several)])

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the decoder makes of the mean of q(z|x): images in [-1, 1]."""
        return self.decode(self.encode(x, labels)[0], labels)

    def _nll(self, x: Tensor, output: Tensor) -> Tensor:
        if self.likelihood == "bernoulli":
            return bernoulli_nll(x, output)
        return gaussian_nll(x, output, self.logvar.to(output.dtype).expand_as(output))

    def _run(self, network: nn.Module, x: Tensor, one_hot: Tensor | None) -> Tensor:
        output: Tensor = network(x) if one_hot is None else network(x, one_hot)
        return output

    def _one_hot(self, labels: Tensor | None, count: int) -> Tensor | None:
        if (labels is None) != (self.classes is None):
            what = (
                "are needed by a conditional model" if self.classes else "need a conditional model"
            )
            raise ValueError(f"labels {what} (classes={self.classes})")
        if labels is None:
            return None
        assert self.classes is not None
        if labels.shape != (count,) or labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape ({count},), got {labels.dtype} {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu" and count:
            low, high = (int(bound) for bound in labels.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(f"labels must lie in [0, {self.classes}), got {low} to {high}")
        return functional.one_hot(labels, self.classes)


def importance_bound(nll: Tensor, ratio: Tensor) -> Tensor:
    """log 1/K sum_k w_k of each x, (N,), from the two (N, K) that `VAE.forward` returns with
    `samples`; its gradient is that of the bound itself."""
    return torch.logsumexp(-nll - ratio, 1) - math.log(nll.size(1))
