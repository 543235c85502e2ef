"""vector-quantize-pytorch: `VectorQuantize` with a Euclidean codebook, averaged or learned."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import vector_quantize_pytorch as theirs

from pyfastgan.ops import nearest_code
from pyfastgan.ops.nearest_code import code_sums

from .swap import Library, Swap, has_hooks, serves

_LEAST = 1e-6  # what the library divides by at least


class _Rotation(torch.autograd.Function):
    """The code in the place of x, and a gradient that is turned and scaled back: `rotate_to` of the library.

    With u = x / |x|, q = c / |c| and w = (u + q) / |u + q| that is |c| / |x| (I - 2 w w' + 2 q u') x, which is c
    itself, and the gradient passes through the transposed matrix.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor, lengths: Tensor, square: Tensor) -> Tensor:
        ctx.save_for_backward(x, code, lengths, square)
        return code.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        x, code, (across, up), square = ctx.saved_tensors
        along_x = torch.linalg.vecdot(x, g) / across
        along_code = torch.linalg.vecdot(code, g) / up
        both = 2 * (along_x + along_code) / square
        ratio = up / across
        turned = torch.addcmul(
            g * ratio[:, None], x, (ratio * (2 * along_code - both) / across)[:, None]
        )
        return turned.addcmul_(code, (-ratio * both / up)[:, None]), None, None, None


def _rotate(x: Tensor, code: Tensor) -> Tensor:
    """Rows (N, D) of codes with the rotation's gradient to x."""
    with torch.no_grad():
        lengths = torch.stack(
            (torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(code, dim=1))
        )
        cosine = torch.linalg.vecdot(x, code) / (lengths[0] * lengths[1])
        square = 2 + 2 * cosine
        # Vectors without a length, or opposite to their code: the library bounds what it divides by.
        usual = (lengths > _LEAST).all() & (square > 1e-4).all()
    if not usual:
        return theirs.rotate_to(x, code)
    return _Rotation.apply(x, code, lengths, square)


class VectorQuantize(theirs.VectorQuantize):
    def forward(
        self,
        x: Tensor,
        indices: Any = None,
        mask: Any = None,
        lens: Any = None,
        topk: Any = None,
        sample_codebook_temp: Any = None,
        freeze_codebook: Any = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Any = None,
        ema_update_weight: Any = None,
        accum_ema_update: bool = False,
        ema_update: Any = None,
    ) -> Any:
        unusual = (indices, mask, lens, topk, codebook_transform_fn)
        images = self.accept_image_fmap or self.accept_3d_fmap
        if (
            any(t is not None for t in unusual)
            or accum_ema_update
            or x.dtype != torch.float32
            or not serves(x, self._codebook.embed)
            or has_hooks(self._codebook)
            or (not images and x.dim() not in (2, 3))
        ):
            return super().forward(
                x,
                indices,
                mask,
                lens,
                topk,
                sample_codebook_temp,
                freeze_codebook,
                return_loss_breakdown,
                codebook_transform_fn,
                ema_update_weight,
                accum_ema_update,
                ema_update,
            )
        given, wants_grad = x.shape, x.requires_grad
        frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        first = images or (not self.channel_last and x.dim() == 3)  # channels in dimension 1
        if first:
            x = x.movedim(1, -1)
        outer = x.shape[:-1]
        x = self.project_in(x.reshape(-1, x.size(-1)))

        codebook = self._codebook
        codebook.init_embed_(x[None])
        codes = codebook.embed[0] if codebook.learnable_codebook else codebook.embed[0].detach()
        known = x.detach()
        index, _ = nearest_code(known, codes.detach())
        code = F.embedding(index, codes)
        if self.training and not frozen:
            self._follow(known, index, ema_update_weight, ema_update)

        commitment, loss = self.zero, self.zero
        quantized = code
        if self.training:
            target = code if self.learnable_codebook and not frozen else code.detach()
            if wants_grad and self.route_gradients_to_input:
                if self.rotation_trick:
                    quantized = _rotate(x, code.detach())
                else:
                    quantized = x + (code - x).detach()
            loss.requires_grad_()
            if self.has_commitment_loss:
                commitment = F.mse_loss(target, x)
                loss = loss + commitment * self.commitment_weight
        quantized = self.project_out(quantized).reshape(*outer, -1)
        quantized = quantized.movedim(-1, 1) if first else quantized
        assert quantized.shape == given
        result = quantized, index.reshape(outer), loss
        if not return_loss_breakdown:
            return result
        return *result, theirs.LossBreakdown(commitment, self.zero, self.zero, self.zero)

    @torch.no_grad()
    def _follow(self, x: Tensor, index: Tensor, weight: Any, update: Any) -> None:
        """The moving averages, and new codes for dead ones."""
        codebook = self._codebook
        update = codebook.ema_update if update is None else update
        if not update and not codebook.has_dead_code_replacement:
            return
        counts, sums = (t[None] for t in code_sums(x, index, codebook.codebook_size))
        codebook.all_reduce_fn(counts)
        codebook.all_reduce_fn(sums)
        if callable(weight):
            weight = weight(sums, counts)
        theirs.ema_inplace(codebook.cluster_size, counts, codebook.decay, weight)
        theirs.ema_inplace(codebook.embed_avg, sums, codebook.decay, weight)
        if update and not codebook.manual_ema_update:
            codebook.update_ema()
        codebook.expire_codes_(x[None])


def _reason(part: Any) -> str | None:
    codebook = part._codebook
    sample = codebook.gumbel_sample
    keywords = sample.keywords if isinstance(sample, functools.partial) else {"stochastic": True}
    for asked, what in (
        (part.use_cosine_sim, "cosine similarity"),
        (part.heads > 1, "several heads"),
        (codebook.affine_param, "affine parameters"),
        (codebook.vq_bridge is not None, "a bridge"),
        (any(keywords.values()), "sampled codes"),
        (part.directional_reparam, "directional reparameterisation"),
        (part.commitment_use_cross_entropy_loss, "a cross-entropy commitment"),
        (part.has_codebook_diversity_loss, "a diversity loss"),
        (part.has_codebook_orthogonal_loss, "an orthogonal loss"),
        (part.in_place_codebook_optimizer is not None, "an optimizer of its own"),
        (part.sync_update_v > 0, "synchronous updates"),
        (type(codebook) is not theirs.Codebook, "another codebook"),
        (has_hooks(codebook), "hooks on its codebook"),
    ):
        if asked:
            return f"it has {what}"
    return None


LIBRARY = Library(
    swaps={theirs.VectorQuantize: Swap(VectorQuantize, "nearest_code", _reason)},
    named=(),
)
