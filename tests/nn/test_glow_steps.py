"""Glow's steps: gradients recomputed and stored, what is kept of them, layouts and autocast."""

import pytest
import torch
from torch import nn

import pyfastgan as pf

from .flow_networks import Net, initialized, seeded


def glow(steps, image=False, **kwargs):
    torch.manual_seed(0)
    made = [
        pf.nn.GlowStep(4, Net(2, 4, 1, image=image, seed=k), lu=k % 3 == 2, **kwargs).double()
        for k in range(steps)
    ]
    shape = (20, 4, 2, 3) if image else (20, 4)
    x, condition = seeded(*shape, seed=3), seeded(shape[0], 1, *shape[2:], seed=4)
    for step in made:
        x = step.init(x, condition)
    return nn.ModuleList(made)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("settings", [{}, {"scale": "softclamp", "shift_first": False}])
def test_recomputed_gradients_are_the_stored_ones(settings, image):
    steps = glow(6, image, **settings)
    shape = (5, 4, 2, 3) if image else (5, 4)
    results = []
    for recompute in (False, True):
        x = seeded(*shape, seed=5).requires_grad_()
        condition = seeded(5, 1, *shape[2:], seed=6).requires_grad_()
        y, logdet = pf.nn.run_glow_steps(steps, x, condition, recompute)
        leaves = [x, condition, *steps.parameters()]
        grads = torch.autograd.grad(
            (y, logdet), leaves, (seeded(*shape, seed=7), seeded(5, seed=8))
        )
        results.append((y, logdet, *grads))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    z, total = x.detach(), 0
    for step in steps:
        z, logdet = step(z, condition)
        total = total + logdet
    torch.testing.assert_close((z, total), results[0][:2])


def test_what_is_kept_does_not_grow_with_the_steps():
    def kept(count, recompute):
        steps = glow(count)
        saved = {}
        x, condition = seeded(400, 4).requires_grad_(), seeded(400, 1)
        hooks = (lambda t: saved.setdefault((t.data_ptr(), t.shape), t)), (lambda t: t)
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            out = pf.nn.run_glow_steps(steps, x, condition, recompute)
        return sum(t.nbytes for t in saved.values() if t.numel() >= 400), out

    few, many = kept(2, True)[0], kept(16, True)[0]
    assert few == many == 400 * 5 * 8  # the output and the condition
    assert kept(16, False)[0] > 16 * 400 * 4 * 8


def test_frozen_networks_and_inputs_without_gradients():
    steps = glow(2)
    for p in steps[0].network.parameters():
        p.requires_grad_(False)
    y, logdet = pf.nn.run_glow_steps(steps, seeded(5, 4), seeded(5, 1))
    (y.square().sum() + logdet.sum()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in steps.parameters())


class Same(nn.Module):
    """The same raw scales and shifts whatever it sees, without parameters."""

    def forward(self, x):
        return torch.linspace(-1, 1, 2 * x.size(1), dtype=x.dtype).expand(x.size(0), -1)


def test_a_network_without_gradients():
    step, found = initialized(pf.nn.GlowStep(4, Same())), []
    for recompute in (False, True):
        x = seeded(5, 4).requires_grad_()
        y, logdet = pf.nn.run_glow_steps([step, step], x, recompute=recompute)
        loss = y.pow(3).sum() + logdet.sum()
        found.append(torch.autograd.grad(loss, [x, *step.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("recompute", [False, True])
def test_images_may_lie_channels_last(recompute):
    torch.manual_seed(0)
    networks = [nn.Conv2d(2, 4, 3, 1, 1).double() for _ in range(2)]
    networks[1].to(memory_format=torch.channels_last)
    steps, found = [], []
    for network in networks:
        steps.append(pf.nn.GlowStep(4, network).double())
        steps[-1].actnorm.init(2 * seeded(50, 4) + 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = seeded(3, 4, 5, 6).contiguous(memory_format=layout).requires_grad_()
        y, logdet = pf.nn.run_glow_steps(steps, x, recompute=recompute)
        leaves = [x, *(p for step in steps for p in step.parameters())]
        found.append((y, logdet, *torch.autograd.grad(y.pow(3).sum() + logdet.sum(), leaves)))
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-9, atol=1e-9)


def test_a_network_that_cannot_be_run_twice_is_refused():
    for layer, says in ((nn.Dropout(), "Dropout"), (nn.BatchNorm1d(4), "BatchNorm1d")):
        step = pf.nn.GlowStep(4, nn.Sequential(nn.Linear(2, 4), layer))
        step.actnorm.init(torch.randn(5, 4))
        with pytest.raises(ValueError, match=f"twice with recompute, but its 1 is a {says}"):
            step(torch.randn(5, 4))
        step.recompute = False
        step(torch.randn(5, 4))


def test_a_second_derivative_through_recomputed_steps_raises():
    x = seeded(3, 4).requires_grad_()
    y, _ = pf.nn.run_glow_steps(glow(1), x, seeded(3, 1))
    with pytest.raises(RuntimeError, match="glow_step with recompute can be differentiated once"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_glow_step_under_autocast():
    step = pf.nn.GlowStep(4, nn.Linear(2, 4))
    step.actnorm.init(torch.randn(5, 4))
    x = torch.randn(5, 4, requires_grad=True)
    grads = []
    for recompute in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            y, logdet = pf.nn.run_glow_steps([step], x, recompute=recompute)
        assert logdet.dtype == torch.float32
        grads.append(torch.autograd.grad(y.float().square().sum() + logdet.sum(), x)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=0.05, atol=0.05)
