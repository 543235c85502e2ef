"""What a convolution behind a norm does not save, and that its gradients are the same bits for it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from pyfastgan.nn import ConvBlock, ConvTransposeBlock, FusedSequential
from pyfastgan.ops import _recompute, edge_conv, norm_act


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recompute, "_WORTH", 0)
    for bound in ("_SMALL", "_SMALL_LAST"):  # below which a norm is torch's, which notes nothing
        monkeypatch.setattr(sys.modules[norm_act.__module__], bound, 0)


def network() -> FusedSequential:
    """A matrix product, torch's convolutions and kernels of an image's edge, behind norms of three kinds."""
    return FusedSequential(
        ConvTransposeBlock(6, 12, 4, norm="batch"),
        ConvTransposeBlock(12, 9, 4, 2, 1, norm="batch"),
        ConvTransposeBlock(9, 3, 4, 2, 1, act="tanh"),
        ConvBlock(3, 8, 4, 2, 1, norm="instance"),
        ConvBlock(8, 8, 3, 1, 1, act="silu"),  # which keeps something of the same shape
        ConvBlock(8, 3, 3, 1, 1, norm="group", groups=3),
        ConvBlock(3, 8, 4, 2, 1, act="silu"),
    )


def gradients(net: nn.Module, x: Tensor, order: int) -> list[Tensor | None]:
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    y = net(x).square().sum()
    if order == 2:
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        y = g.square().sum()
    y.backward()
    return [x.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("frozen", [0, 4, 7])
def test_the_same_bits(monkeypatch: pytest.MonkeyPatch, frozen: int, order: int) -> None:
    torch.manual_seed(0)
    net, x = network(), torch.randn(3, 6, 1, 1)
    for block in list(net)[7 - frozen :]:
        block.requires_grad_(False)
    found = gradients(net, x, order)
    monkeypatch.setattr(_recompute, "_WORTH", 1 << 60)
    for ours, kept in zip(found, gradients(net, x, order), strict=True):
        assert (ours is None) == (kept is None)
        assert ours is None or torch.equal(ours, kept)


def behind_a_norm(weight: Tensor) -> tuple[Tensor, StorageWeakRef]:
    """A convolution of a norm's result, and whether that still has its memory."""
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    y = norm_act(x, norm="instance")
    return edge_conv(y, weight), StorageWeakRef(y.untyped_storage())


@pytest.mark.parametrize("trained", [False, True])
def test_the_result_of_a_norm_is_not_kept(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    weight = torch.randn(4, 4, 3, 3, requires_grad=trained)
    z, memory = behind_a_norm(weight)
    assert memory.expired()
    z.sum().backward()
    monkeypatch.setattr(_recompute, "_WORTH", 1 << 60)
    z, memory = behind_a_norm(weight)
    assert not memory.expired()
    del z


def test_a_result_that_was_changed_is_kept() -> None:
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    y = norm_act(torch.randn(2, 4, 5, 5, requires_grad=True), norm="instance")
    y.mul_(3.0)
    z = edge_conv(y, weight)
    (found,) = torch.autograd.grad(z.sum(), weight)
    expected = torch.nn.grad.conv2d_weight(y.detach(), weight.shape, torch.ones_like(z))
    torch.testing.assert_close(found, expected)


def test_a_weight_that_moved_is_an_error() -> None:
    gamma = torch.ones(4, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    z = edge_conv(norm_act(torch.randn(2, 4, 5, 5), gamma), weight)
    with torch.no_grad():
        gamma.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(z.sum(), weight)


def test_others_hooks_get_everything() -> None:
    seen: list[tuple[int, ...]] = []

    def pack(t: Tensor) -> Tensor:
        seen.append(tuple(t.shape))
        return t

    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    y = norm_act(torch.randn(2, 4, 6, 6, requires_grad=True), norm="instance")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        edge_conv(y, weight)
    assert tuple(y.shape) in seen


def test_a_note_does_not_travel_with_a_tensor(tmp_path: Path) -> None:
    y = norm_act(torch.randn(2, 4, 6, 6, requires_grad=True), norm="instance")
    torch.save(y, tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt"), y)


def test_nothing_is_noted_under_a_transform() -> None:
    def value(x: Tensor) -> Tensor:
        return edge_conv(norm_act(x, norm="instance"), torch.ones(4, 4, 3, 3)).square().sum()

    x = torch.randn(2, 4, 5, 5)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(value)(x), expected)
