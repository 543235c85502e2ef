"""Vector quantisation as a layer: van den Oord et al. (2017), "Neural discrete representation learning"."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pyfastgan._names import check_choice
from pyfastgan.ops import nearest_code, random_words
from pyfastgan.ops.nearest_code import code_sums


class Quantized(NamedTuple):
    """What a `VectorQuantizer` returns.

    quantized   of x's shape and dtype: the codes, with a gradient to x
    indices     (N, ...) int64, x's shape without its dimension 1
    loss        scalar: commitment, and the codebook's own loss where it is learned by one
    perplexity  scalar: exp of the entropy of the codes' frequencies in this batch, over all ranks
    usage       scalar: the share of the codes that this batch uses, over all ranks
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor
    usage: Tensor


class _StraightThrough(torch.autograd.Function):
    """The code, whose gradient goes to x as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor) -> Tensor:
        return code.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Rotation(torch.autograd.Function):
    """The code as a rotation and scaling of x, both held fixed: Fifty et al. (2024), "Restructuring
    vector quantization with the rotation trick", section 4.2.

    With u = x / |x|, v = code / |code| and w = (u + v) / |u + v| the rotation is I - 2 w w' + 2 v u'.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor) -> Tensor:
        ctx.save_for_backward(x, code)
        return code.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, code = ctx.saved_tensors
        length, least = x.norm(dim=-1, keepdim=True), torch.finfo(x.dtype).tiny
        u, v = F.normalize(x, dim=-1), F.normalize(code, dim=-1)
        w = F.normalize(u + v, dim=-1)
        turned = gradient - 2 * w * (w * gradient).sum(-1, keepdim=True)
        turned = turned + 2 * u * (v * gradient).sum(-1, keepdim=True)
        return turned * (code.norm(dim=-1, keepdim=True) / length.clamp(min=least)), None


_GRADIENTS = {"straight-through": _StraightThrough, "rotation": _Rotation}


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest of a learned set of codes.

    In training the codebook follows the vectors that chose each code by exponential moving averages
    (appendix A.1 of the paper), or by the gradient of its loss. No distance or one-hot matrix of
    vectors x codes is made, and nothing is read back from a GPU.

    Under `torch.distributed` counts, sums and restarts are those of all ranks together, so that every
    rank keeps the same codebook; the first training step starts from rank 0's. Every rank calls the
    layer equally often, with at least one vector.

    Args:
        codes: K, at least 2.
        width: D, the size of dimension 1 of the inputs.
        codebook: "ema", or "loss" for a parameter that an optimizer moves.
        gradient: "straight-through" or "rotation".
        commitment: beta, the weight of the mean squared distance from x to its code.
        decay: of the moving averages.
        eps: of the Laplace smoothing of the averaged counts.
        restart_below: a code whose averaged count (vectors a batch) is below this is replaced, before
            the next search, by a vector drawn from the batch. 0: never.
        seed: of these draws.

    The state holds the codebook (K, D), `counts` (K,), `sums` (K, D) with "ema", and `steps`.
    """

    counts: Tensor
    sums: Tensor | None
    steps: Tensor

    def __init__(
        self,
        codes: int,
        width: int,
        *,
        codebook: str = "ema",
        gradient: str = "straight-through",
        commitment: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        restart_below: float = 0.0,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if codes < 2:
            raise ValueError(f"codes must be at least 2, got {codes}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        check_choice("codebook", codebook, ("ema", "loss"))
        check_choice("gradient", gradient, _GRADIENTS)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        for name, value in (
            ("commitment", commitment),
            ("eps", eps),
            ("restart_below", restart_below),
        ):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.gradient, self.commitment, self.decay, self.eps = gradient, commitment, decay, eps
        self.restart_below, self.seed, self._agreed = restart_below, seed, False
        start = torch.empty(codes, width, device=device, dtype=dtype).uniform_(
            -1 / codes, 1 / codes
        )
        if codebook == "ema":
            self.register_buffer("codebook", start)
            self.register_buffer("sums", start.clone())
        else:
            self.codebook = nn.Parameter(start)
            self.sums = None
        self.register_buffer("counts", torch.ones_like(start[:, 0]))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, x: Tensor) -> Quantized:
        """Quantises (N, width, ...), of any floating-point dtype. The loss of no vectors is 0.

        Raises:
            TypeError: x is not of a floating-point dtype.
            ValueError: x has another width, or on a CPU holds a NaN. Elsewhere, and in what is
                compiled or exported, a NaN makes the loss NaN and leaves the codebook as it is.
        """
        codes, width = self.codebook.shape
        if not x.is_floating_point():
            raise TypeError(f"x must be of a floating-point dtype, got {x.dtype}")
        if x.dim() < 2 or x.size(1) != width:
            raise ValueError(f"x must have shape (N, {width}, ...), got {tuple(x.shape)}")
        moved = x.movedim(1, -1)
        rows = moved.reshape(-1, width).to(self.codebook.dtype)
        known = rows.detach()
        if self.training:
            self._agree()
            if self.restart_below > 0 and len(known) > 0:
                self._restart(known)
        index, distance = nearest_code(known, self.codebook)
        # What is compiled or exported cannot stop at a value.
        looks = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and distance.detach().isnan().any():
            bad = int(distance.isnan().sum())
            raise ValueError(f"x must not hold NaN, got it in {bad} of {len(known)} vectors")
        code = F.embedding(index, self.codebook.detach())
        # The mean of no elements would be NaN.
        loss = self.commitment * (F.mse_loss(rows, code) if known.numel() else rows.sum())
        if self.sums is None:
            loss = loss + distance.sum() / max(known.numel(), 1)
        counts, sums = code_sums(known, index, codes)
        if self.training:
            counts, sums = self._together(counts, sums)
            self._follow(counts, sums)
        share = counts / counts.sum().clamp(min=1)
        perplexity = torch.exp(-torch.xlogy(share, share).sum())
        usage = (counts > 0).to(counts.dtype).mean()
        quantized = _GRADIENTS[self.gradient].apply(rows, code)
        quantized = quantized.to(x.dtype).reshape(moved.shape).movedim(-1, 1)
        return Quantized(quantized, index.reshape(moved.shape[:-1]), loss, perplexity, usage)

    def lookup(self, index: Tensor) -> Tensor:
        """The codes (N, width, ...) of indices (N, ...).

        Raises:
            ValueError: an index is not that of a code. The check waits for a GPU.
        """
        if index.numel():
            low, high = (int(bound) for bound in index.aminmax())
            if low < 0 or high >= len(self.codebook):
                raise ValueError(
                    f"index must lie in [0, {len(self.codebook)}), got {low} to {high}"
                )
        return F.embedding(index, self.codebook).movedim(-1, 1)

    def extra_repr(self) -> str:
        codes, width = self.codebook.shape
        how = "loss" if self.sums is None else f"ema, decay={self.decay}"
        return f"{codes}, {width}, codebook={how}, gradient={self.gradient}, commitment={self.commitment}"

    def _agree(self) -> None:
        """All ranks start from rank 0's state."""
        if not self._agreed and _ranks() > 1:
            for tensor in (self.codebook.data, self.counts, self.sums, self.steps):
                if tensor is not None:
                    dist.broadcast(tensor, 0)
        self._agreed = True

    @staticmethod
    def _together(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        if _ranks() == 1:
            return counts, sums
        both = torch.cat((counts[:, None], sums), 1)
        dist.all_reduce(both)
        return both[:, 0], both[:, 1:]

    @torch.no_grad()
    def _follow(self, counts: Tensor, sums: Tensor) -> None:
        self.steps += 1
        usable = sums.isfinite().all()

        def follow(average: Tensor, value: Tensor) -> None:
            moved = average.lerp(value.to(average.dtype), 1 - self.decay)
            average.copy_(torch.where(usable, moved, average))

        follow(self.counts, counts)
        if self.sums is not None:
            follow(self.sums, sums)
            total = self.counts.sum()
            smooth = (self.counts + self.eps) / (total + len(self.counts) * self.eps) * total
            self.codebook.copy_(self.sums / smooth[:, None])

    @torch.no_grad()
    def _restart(self, rows: Tensor) -> None:
        """Replaces dead codes by vectors of the batch. A code's rank and place in the batch are drawn
        from a seed that all ranks share."""
        words = random_words((2, len(self.counts)), self.steps + self.seed)
        candidates = rows[words[0] % len(rows)]
        if _ranks() > 1:
            ours = words[1] % _ranks() == dist.get_rank()
            candidates = torch.where(ours[:, None], candidates, 0)
            dist.all_reduce(candidates)
        dead = self.counts < self.restart_below
        dead &= candidates.isfinite().all(1)
        self.codebook.copy_(torch.where(dead[:, None], candidates, self.codebook))
        self.counts.copy_(torch.where(dead, self.restart_below, self.counts))
        if self.sums is not None:
            self.sums.copy_(torch.where(dead[:, None], candidates * self.restart_below, self.sums))
