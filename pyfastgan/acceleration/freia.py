"""FrEIA: AllInOneBlock and the affine coupling blocks."""

from __future__ import annotations

from typing import Any

import torch
from FrEIA import framework, modules
from torch import Tensor

from pyfastgan.ops import affine_coupling
from pyfastgan.ops._couple_channels import Behind, couple_channels, halves, traced
from pyfastgan.ops._couple_channels import serves as couples

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


class AllInOneBlock(modules.AllInOneBlock):
    """A permutation picks channels, where FrEIA multiplies by a matrix of zeros and ones."""

    def _order(self) -> tuple[Tensor, Tensor] | None:
        """Which channel stands where after the permutation, and the way back; None for a rotation, and where nobody can
        look at the matrix: while it is traced, or under torch.func."""
        if self.householder or traced():
            return None
        # Looked at again whenever the matrix was written to, as loading a state does.
        key = (self.w_perm.data_ptr(), self.w_perm._version)
        known = self.__dict__.get("_fast_order")
        if known is None or known[0] != key:
            matrix = self.w_perm.detach().flatten(1)
            index, back = matrix.argmax(1), matrix.argmax(0)
            one = torch.eye(len(matrix), device=matrix.device).to(matrix)
            hard = torch.equal(matrix, one[index]) and torch.equal(matrix.T, one[back])
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
        """Whether one call does what comes after the network; FrEIA's own steps call the methods above."""
        if self.GIN or self.reverse_pre_permute or not self.clamp > 0:
            return False
        return serves(x, self.global_scale, self.global_offset) and couples(x)

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        order = None if rev or not self._joins(x[0]) else self._order()
        if order is None:
            return super().forward(x, c, rev=rev, jac=jac)
        x1, whole = halves(x[0], self.splits[0])
        a = self.subnet(torch.cat([x1, *c], 1) if self.conditional else x1)
        scale = self.global_scale_activation(self.global_scale)
        y, logdet = couple_channels(
            whole,
            a,
            scale="clamped_tanh",
            clamp=float(self.clamp),
            factor=0.1,
            behind=Behind(scale, self.global_offset, *order),
        )
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
        *(framework.SequenceINN, framework.GraphINN),
        *(modules.PermuteRandom, modules.Reshape, modules.Flatten, modules.Split, modules.Concat),
    ),
)
