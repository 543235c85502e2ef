"""Sparse coding: Olshausen & Field 1996, "Emergence of simple-cell receptive field properties by learning a
sparse code for natural images", with the codes found by FISTA (Beck & Teboulle 2009).

Each x is near a sum of a few atoms of a dictionary D, more atoms than x has numbers. Over codes a and D

    1/2 |x - mean - a D|^2 + penalty sum_k |a_k|,   |D_k| <= 1

is minimised; it is scikit-learn's objective of `DictionaryLearning`, but for the mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyfastgan.ops import random_uniform

# Of the moving average of the codes' magnitudes.
_DECAY = 0.99


@torch.no_grad()
def sparse_codes(x: Tensor, dictionary: Tensor, penalty: float, *, iterations: int = 100) -> Tensor:
    """The codes (N, K) that minimise 1/2 |x - a D|^2 + penalty |a|_1, by FISTA from zero.

    Args:
        x: (N, D).
        dictionary: (K, D), an atom a row.
        penalty: Above 0.
        iterations: The objective's distance from its minimum falls with their square, or faster.

    Raises:
        ValueError: Another shape, a penalty that is not above 0.
    """
    if x.ndim != 2 or dictionary.ndim != 2 or x.shape[1] != dictionary.shape[1]:
        raise ValueError(
            "x must be of shape (N, D) and dictionary of shape (K, D),"
            f" got {tuple(x.shape)} and {tuple(dictionary.shape)}"
        )
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    gram, target = dictionary @ dictionary.T, x @ dictionary.T
    small = gram if len(gram) <= x.shape[1] else dictionary.T @ dictionary
    # There are no eigenvalues in half types.
    wide = small if x.dtype == torch.float64 else small.float()
    largest = torch.linalg.eigvalsh(wide)[-1].to(x.dtype)
    step = 1 / largest.clamp(min=torch.finfo(x.dtype).tiny)
    codes = ahead = torch.zeros_like(target)
    momentum = 1.0
    for _ in range(iterations):
        moved = ahead - step * (ahead @ gram - target)
        found = nn.functional.softshrink(moved / step, penalty) * step
        after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = found + (momentum - 1) / after * (found - codes)
        codes, momentum = found, after
    return codes


class SparseCoding(nn.Module):
    """A dictionary for x (N, ...) of one shape.

    Args:
        shape: Of one x.
        atoms: K.
        penalty: Of the codes' magnitudes.
        iterations: Of FISTA.

    `forward` gives the objective of each x, (N,), whose gradient moves the dictionary and the mean while
    the codes stay fixed; `project` then brings the atoms back into the unit ball.
    """

    steps: Tensor
    magnitudes: Tensor

    def __init__(
        self, shape: tuple[int, ...], atoms: int, *, penalty: float, iterations: int = 100
    ) -> None:
        super().__init__()
        for name, count in (("atoms", atoms), ("iterations", iterations)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not penalty > 0:
            raise ValueError(f"penalty must be above 0, got {penalty}")
        self.shape, self.penalty, self.iterations = shape, penalty, iterations
        features = math.prod(shape)
        self.dictionary = nn.Parameter(nn.functional.normalize(torch.randn(atoms, features)))
        self.mean = nn.Parameter(torch.zeros(features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("magnitudes", torch.zeros(atoms))

    def encode(self, x: Tensor) -> Tensor:
        """The codes (N, K)."""
        rest = x.flatten(1) - self.mean.detach()
        return sparse_codes(rest, self.dictionary, self.penalty, iterations=self.iterations)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, K) to x's shape."""
        return (self.mean + codes @ self.dictionary).unflatten(1, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """The objective at the codes that are found, (N,)."""
        codes = self.encode(x)
        if self.training:
            self._follow(codes)
        return self.objective(x, codes)

    def objective(self, x: Tensor, codes: Tensor) -> Tensor:
        """1/2 |x - mean - a D|^2 + penalty |a|_1 of each x, (N,)."""
        error = (x - self.decode(codes)).square().flatten(1).sum(1)
        return 0.5 * error + self.penalty * codes.abs().sum(1)

    @torch.no_grad()
    def project(self) -> None:
        """Shorten atoms that are longer than 1."""
        self.dictionary.div_(self.dictionary.norm(dim=1, keepdim=True).clamp(min=1))

    @torch.no_grad()
    def _follow(self, codes: Tensor) -> None:
        self.steps += 1
        weight = torch.clamp(1 / self.steps, min=1 - _DECAY)
        self.magnitudes += weight * (codes.abs().mean(0) - self.magnitudes)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The sum of atoms that x is near."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Sums of all atoms with Laplace-distributed codes, each of the mean magnitude that it has in the
        training data: the prior that the penalty stands for. Clamped to [-1, 1]."""
        shape = (count, len(self.magnitudes))
        centred = random_uniform(shape, seed, device=self.magnitudes.device) - 0.5
        codes = -self.magnitudes * centred.sign() * torch.log1p(-2 * centred.abs())
        return self.decode(codes).clamp(-1, 1)
