"""FrEIA: AllInOneBlock and the affine coupling blocks."""

from __future__ import annotations

from typing import Any

import torch
from FrEIA import modules
from torch import Tensor

from pyfastgan.ops import affine_coupling
from pyfastgan.ops._common import forward_mode, needs_grad
from pyfastgan.ops.affine_coupling import _backward, _forward

from .swap import Library, Swap, serves


class _Pick(torch.autograd.Function):
    """Channels in another order; the gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        index, back = ctx.saved_tensors
        return _Pick.apply(g, back, index), None, None


def _join(
    x1: Tensor,
    x2: Tensor,
    a: Tensor,
    scale: Tensor,
    offset: Tensor,
    index: Tensor,
    back: Tensor,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    """What a block makes of its halves and of its network's output, in steps that autograd follows."""
    raw, shift = (0.1 * a).split(x2.size(1), 1)
    y2, logdet = affine_coupling(x2, raw, shift, scale="clamped_tanh", clamp=clamp)
    z = torch.cat((x1, y2), 1)
    y = _Pick.apply(torch.addcmul(offset, z, scale), index, back)
    return y, logdet + z[0, :1].numel() * scale.log().sum()


class _Join(torch.autograd.Function):
    """`_join` as one step: what autograd does for each of many costs more than the arithmetic of small blocks."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x1, x2, a, scale, offset, index, back, ctx.clamp = inputs
        raw, shift = (0.1 * a).split(x2.size(1), 1)
        y2, logdet = _forward(x2, raw, shift, "clamped_tanh", ctx.clamp, False, False)
        z = torch.cat((x1, y2), 1)
        ctx.save_for_backward(x1, x2, a, scale, offset, index, back, z)
        logdet.add_(scale.log().sum(), alpha=z[0, :1].numel())
        return torch.addcmul(offset, z, scale).index_select(1, index), logdet

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlogdet: Tensor) -> tuple[Any, ...]:
        *inputs, z = ctx.saved_tensors
        x1, x2, a, scale, _, _, back = inputs
        if needs_grad(dy, dlogdet, *inputs):
            # Names of their own, since the inputs depend on each other: `a` is a function of x1.
            x1, x2, a, scale, offset, index, back = inputs = [t.view_as(t) for t in inputs]
            outputs = _join(x1, x2, a, scale, offset, index, back, ctx.clamp)
            wanted = [t for t in inputs if t.requires_grad]
            found = iter(torch.autograd.grad(outputs, wanted, (dy, dlogdet), create_graph=True))
            return *(next(found) if t.requires_grad else None for t in inputs), None
        g = dy.index_select(1, back)
        over = [0, *range(2, g.dim())]
        dscale = (g * z).sum(over, keepdim=True) + dlogdet.sum() * z[0, :1].numel() / scale
        doffset = g.sum(over, keepdim=True)
        dx1, dshift = (g * scale).split((x1.size(1), x2.size(1)), 1)
        raw = 0.1 * a[:, : x2.size(1)]
        settings = ("clamped_tanh", ctx.clamp, False, False)
        dx2, draw = _backward(dshift, dlogdet, x2, raw, *settings)
        da = torch.cat((draw, dshift), 1).mul_(0.1)
        return dx1, dx2, da, dscale, doffset, None, None, None


class AllInOneBlock(modules.AllInOneBlock):
    """A permutation picks channels, where FrEIA multiplies by a matrix of zeros and ones."""

    def _order(self) -> tuple[Tensor, Tensor] | None:
        """Which channel stands where after the permutation, and the way back; None for a rotation."""
        if self.householder or torch.compiler.is_compiling():
            return None
        # Looked at again whenever the matrix was written to, as loading a state does.
        key = (self.w_perm.data_ptr(), self.w_perm._version)
        known = self.__dict__.get("_fast_order")
        if known is None or known[0] != key:
            matrix = self.w_perm.detach().flatten(1)
            index, back = matrix.argmax(1), matrix.argmax(0)
            hard = torch.equal(
                matrix, torch.eye(len(matrix), device=matrix.device)[index].to(matrix)
            )
            known = self.__dict__["_fast_order"] = (key, (index, back) if hard else None)
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_fast_order"}

    def _turn(self, x: Tensor, rev: bool) -> Tensor:
        order = self._order()
        if order is None:
            return self.permute_function(x, self.w_perm_inv if rev else self.w_perm)
        return _Pick.apply(x, *(order[::-1] if rev else order))

    def _permute(self, x: Tensor, rev: bool = False) -> tuple[Tensor, Any]:
        if self.GIN or not serves(x):
            return super()._permute(x, rev=rev)
        scale = self.global_scale_activation(self.global_scale)
        logdet = torch.log(scale).sum()
        if rev:
            return (self._turn(x, True) - self.global_offset) / scale, logdet
        return self._turn(torch.addcmul(self.global_offset, x, scale), False), logdet

    def _pre_permute(self, x: Tensor, rev: bool = False) -> Tensor:
        if not serves(x):
            return super()._pre_permute(x, rev=rev)
        return self._turn(x, not rev)

    def _affine(self, x: Tensor, a: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        if self.GIN or not self.clamp > 0 or not serves(x, a):
            return super()._affine(x, a, rev=rev)
        raw, shift = (0.1 * a).split(x.shape[1], 1)
        clamp = float(self.clamp)
        return affine_coupling(x, raw, shift, scale="clamped_tanh", clamp=clamp, inverse=rev)

    def _joins(self, x: Tensor) -> bool:
        """Whether one step does what comes after the network; FrEIA's own steps call the methods above."""
        if self.GIN or self.reverse_pre_permute or not self.clamp > 0 or not serves(x):
            return False
        if torch.compiler.is_compiling() or forward_mode():
            return False
        return not torch._C._are_functorch_transforms_active()

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        order = None if rev or not self._joins(x[0]) else self._order()
        if order is None:
            return super().forward(x, c, rev=rev, jac=jac)
        x1, x2 = torch.split(x[0], self.splits, dim=1)
        a = self.subnet(torch.cat([x1, *c], 1) if self.conditional else x1)
        scale = self.global_scale_activation(self.global_scale)
        call = _Join.apply if serves(x2, a) else _join
        y, logdet = call(x1, x2, a, scale, self.global_offset, *order, float(self.clamp))
        return (y,), logdet


def _is_atan(clamp: Any) -> bool:
    """Whether it is FrEIA's own 0.636 atan(u)."""
    code = getattr(clamp, "__code__", None)
    own = getattr(clamp, "__module__", None) == "FrEIA.modules.coupling_layers"
    return own and code is not None and "atan" in code.co_names and 0.636 in code.co_consts


def _couple(block: Any, x: Tensor, s: Tensor, t: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
    c = float(block.clamp)
    if _is_atan(block.f_clamp) and c > 0:
        # The op takes s / clamp, as older versions of FrEIA did.
        return affine_coupling(x, c * s, t, scale="softclamp", clamp=c, inverse=rev)
    return affine_coupling(x, c * block.f_clamp(s), t, inverse=rev)


class RNVPCouplingBlock(modules.RNVPCouplingBlock):
    def _coupling1(self, x1: Tensor, u2: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        if not serves(x1):
            return super()._coupling1(x1, u2, rev=rev)
        return _couple(self, x1, self.subnet_s2(u2), self.subnet_t2(u2), rev)

    def _coupling2(self, x2: Tensor, u1: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        if not serves(x2):
            return super()._coupling2(x2, u1, rev=rev)
        return _couple(self, x2, self.subnet_s1(u1), self.subnet_t1(u1), rev)


class GLOWCouplingBlock(modules.GLOWCouplingBlock):
    def _coupling1(self, x1: Tensor, u2: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        if not serves(x1):
            return super()._coupling1(x1, u2, rev=rev)
        s, t = self.subnet2(u2).tensor_split((self.split_len1,), 1)
        return _couple(self, x1, s, t, rev)

    def _coupling2(self, x2: Tensor, u1: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        if not serves(x2):
            return super()._coupling2(x2, u1, rev=rev)
        s, t = self.subnet1(u1).tensor_split((self.split_len2,), 1)
        return _couple(self, x2, s, t, rev)


class AffineCouplingOneSided(modules.AffineCouplingOneSided):
    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        if not serves(x[0]):
            return super().forward(x, c, rev=rev, jac=jac)
        x1, x2 = torch.split(x[0], [self.split_len1, self.split_len2], dim=1)
        kept = torch.cat([x1, *c], 1) if self.conditional else x1
        s, t = self.subnet(kept).tensor_split((self.split_len2,), 1)
        y2, logdet = _couple(self, x2, s, t, rev)
        return (torch.cat((x1, y2), 1),), logdet


class ConditionalAffineTransform(modules.ConditionalAffineTransform):
    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        if not serves(x[0]):
            return super().forward(x, c, rev=rev, jac=jac)
        s, t = self.subnet(torch.cat(tuple(c), 1)).tensor_split((self.channels,), 1)
        y, logdet = _couple(self, x[0], s, t, rev)
        return (y,), logdet


LIBRARY = Library(
    swaps={
        modules.AllInOneBlock: Swap(AllInOneBlock, "affine_coupling"),
        modules.RNVPCouplingBlock: Swap(RNVPCouplingBlock, "affine_coupling"),
        modules.GLOWCouplingBlock: Swap(GLOWCouplingBlock, "affine_coupling"),
        modules.AffineCouplingOneSided: Swap(AffineCouplingOneSided, "affine_coupling"),
        modules.ConditionalAffineTransform: Swap(ConditionalAffineTransform, "affine_coupling"),
    },
    named=(modules.InvertibleModule,),
    silent=(
        *(modules.PermuteRandom, modules.Reshape, modules.Flatten, modules.Split, modules.Concat),
    ),
)
