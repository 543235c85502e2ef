"""Whole training steps of the presets cgan, pix2pix, cyclegan, progan and biggan, of both players.

Eager is the same networks in layers of torch.nn, contiguous, and the loop as the field writes it: real
and generated images judged apart, a discriminator that is not frozen in the generator's turn, each
residual shortcut's convolution at the larger size, noise from torch.randn, Adam as it comes. `eager,
tuned` has all but the first of these mended where they apply: channels-last, frozen, fused Adam. Ours is
the step that `pyfastgan train` takes. biggan's is two steps of the discriminator and one of the generator.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from types import MethodType
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan import data
from pyfastgan.gan import PRESETS, biggan, progressive
from pyfastgan.gan.systems import KINDS
from pyfastgan.nn import ConvBlock, ConvTransposeBlock, NormAct
from pyfastgan.ops._registry import Row, ops

ACTS: dict[str, Callable[[float], nn.Module]] = {
    "linear": lambda slope: nn.Identity(),
    "relu": lambda slope: nn.ReLU(),
    "leaky_relu": nn.LeakyReLU,
    "tanh": lambda slope: nn.Tanh(),
}


def plain(network: nn.Module) -> nn.Module:
    """The network in layers of torch.nn, contiguous, with the same weights."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for module in [*network.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, ConvBlock | ConvTransposeBlock):
                layers = [child.conv, *([child.norm] if child.norm else [])]
                new: nn.Module = nn.Sequential(*layers, ACTS[child.act](child.slope))
            elif isinstance(child, NormAct):
                norm = nn.BatchNorm2d(child.channels, affine=child.weight is not None)
                new = nn.Sequential(norm, ACTS[child.act](child.slope))
            else:
                continue
            module._modules[name] = new
    for module in network.modules():
        if isinstance(module, progressive.ScaledConv):
            module.forward = MethodType(_scaled, module)  # type: ignore[method-assign]
        elif isinstance(module, progressive.FirstMap):
            module.forward = MethodType(_first, module)  # type: ignore[method-assign]
        elif isinstance(module, biggan.UpBlock):
            module.forward = MethodType(_up, module)  # type: ignore[method-assign]
        elif isinstance(module, biggan.DownBlock):
            module.forward = MethodType(_down, module)  # type: ignore[method-assign]
    return network


def _scaled(self: Any, x: Tensor) -> Tensor:
    y = functional.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)
    return y if self.act == "linear" else functional.leaky_relu(y, 0.2)


def _first(self: Any, x: Tensor) -> Tensor:
    weight = self.weight.permute(1, 0, 2, 3).flip(2, 3) * self.scale
    y = functional.conv2d(x[..., None, None], weight, self.bias, padding=3)
    return functional.leaky_relu(y, 0.2)


def _up(self: Any, x: Tensor, condition: Tensor) -> Tensor:
    h = self.conv1(functional.interpolate(self.norm1(x, condition), scale_factor=2))
    h = self.conv2(self.norm2(h, condition))
    return h + self.shortcut(functional.interpolate(x, scale_factor=2))


def _down(self: Any, x: Tensor) -> Tensor:
    h = self.conv2(self.conv1(x if self.first else x.relu()).relu())
    x = self.shortcut(x)
    return functional.avg_pool2d(h + x, 2) if self.halve else h + x


def optimizer(networks: list[nn.Module], config: Any, tuned: bool) -> torch.optim.Optimizer:
    parameters = [p for network in networks for p in network.parameters()]
    if getattr(config, "optimizer", "adam") == "rmsprop":
        return torch.optim.RMSprop(parameters, config.learning_rate)
    return torch.optim.Adam(parameters, config.learning_rate, config.betas, fused=tuned)


class Eager:
    """Both players' optimizers, and what freezes the judges in the other's turn."""

    def __init__(self, makers: list[nn.Module], judges: list[nn.Module], config: Any, tuned: bool):
        self.makers, self.judges, self.tuned = makers, judges, tuned
        if tuned:
            for network in (*makers, *judges):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.improve_makers, self.improve_judges = (
            optimizer(nets, config, tuned) for nets in (makers, judges)
        )

    def judge(self, loss: Tensor) -> None:
        self.improve_judges.zero_grad()
        loss.backward()
        self.improve_judges.step()

    def make(self, loss: Callable[[], Tensor]) -> None:
        for judge in self.judges:
            judge.requires_grad_(not self.tuned)
        self.improve_makers.zero_grad()
        loss().backward()
        self.improve_makers.step()
        for judge in self.judges:
            judge.requires_grad_(True)


def logistic(logits: Tensor, real: bool) -> Tensor:
    labels = torch.ones_like(logits) if real else torch.zeros_like(logits)
    return functional.binary_cross_entropy_with_logits(logits, labels)


def squares(scores: Tensor, real: bool) -> Tensor:
    return functional.mse_loss(scores, torch.full_like(scores, float(real)))


def eager_cgan(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    g, d = (plain(system.networks[name]) for name in ("generator", "discriminator"))
    (images, labels), players = batch, Eager([g], [d], system.config, tuned)

    def step() -> None:
        fake = g(torch.randn(len(images), system.config.latent_dim), labels)
        players.judge(logistic(d(images, labels), True) + logistic(d(fake.detach(), labels), False))
        players.make(lambda: logistic(d(fake, labels), True))

    return step


def eager_pix2pix(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    g, d = (plain(system.networks[name]) for name in ("generator", "discriminator"))
    (given, real), players = batch, Eager([g], [d], system.config, tuned)

    def step() -> None:
        fake = g(given)
        pair = torch.cat([given, fake], 1)
        of_real = logistic(d(torch.cat([given, real], 1)), True)
        players.judge((of_real + logistic(d(pair.detach()), False)) / 2)
        players.make(lambda: logistic(d(pair), True) + 100 * functional.l1_loss(fake, real))

    return step


def eager_cyclegan(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    names = ("first_to_second", "second_to_first", "judge_first", "judge_second")
    g, f, da, db = (plain(system.networks[name]) for name in names)
    (a, b), players, l1 = batch, Eager([g, f], [da, db], system.config, tuned), functional.l1_loss

    def step() -> None:
        made: list[Tensor] = []

        def total() -> Tensor:
            made[:] = fake_b, fake_a = g(a), f(b)
            cycle = l1(f(fake_b), a) + l1(g(fake_a), b)
            same = l1(f(a), a) + l1(g(b), b)
            return squares(db(fake_b), True) + squares(da(fake_a), True) + 10 * cycle + 5 * same

        players.make(total)
        fake_b, fake_a = (x.detach() for x in made)
        of_a = (squares(da(a), True) + squares(da(fake_a), False)) / 2
        of_b = (squares(db(b), True) + squares(db(fake_b), False)) / 2
        players.judge(of_a + of_b)

    return step


def eager_progan(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    g, d = (plain(system.networks[name]) for name in ("generator", "discriminator"))
    (real,), players = batch, Eager([g], [d], system.config, tuned)
    size = real.shape[-1]

    def step() -> None:
        z = torch.randn(len(real), system.config.latent_dim)
        fake = g(z, size, 1.0)
        of_real, of_fake = d(real), d(fake.detach())
        x = torch.lerp(fake.detach(), real, torch.rand(len(real), 1, 1, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
        penalty = 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        drift = 1e-3 * of_real.square().mean()
        players.judge(of_fake.mean() - of_real.mean() + penalty + drift)
        players.make(lambda: -d(fake).mean())

    return step


def eager_biggan(system: Any, batch: tuple[Tensor, ...], tuned: bool) -> Callable[[], None]:
    g, d = (plain(system.networks[name]) for name in ("generator", "discriminator"))
    (images, labels), players = batch, Eager([g], [d], system.config, tuned)
    regularised = [p for name, p in g.named_parameters() if p.ndim > 1 and name != "embed.weight"]

    def orthogonal() -> Tensor:
        total = torch.zeros(())
        for weight in regularised:
            rows = weight.flatten(1)
            product = rows @ rows.T
            total = total + (product * (1 - torch.eye(len(rows)))).square().sum()
        return system.config.orthogonal * total

    def step() -> None:
        for turn in range(2):
            z = torch.randn(len(images), system.config.latent_dim)
            with torch.set_grad_enabled(turn == 1):
                fake = g(z, labels)
            of_real = (1 - d(images, labels)).relu().mean()
            players.judge(of_real + (1 + d(fake.detach(), labels)).relu().mean())
        players.make(lambda: -d(fake, labels).mean() + orthogonal())

    return step


def prepared(name: str) -> tuple[Any, tuple[Tensor, ...], int]:
    """The system of a preset, a batch of its data, and the step to begin with."""
    config = PRESETS[name]
    config, dataset, build = KINDS[type(config)].prepare(config, None)
    items = [dataset[i] for i in range(config.batch_size)]
    batch = tuple(torch.stack(parts) for parts in zip(*items, strict=True))
    torch.manual_seed(0)
    if name == "progan":
        return build(), batch[:1], config.steps  # at its largest resolution
    return build(), batch, 1


def driven(system: Any, batch: tuple[Tensor, ...], first: int, turns: int) -> Callable[[], Any]:
    """The steps that `pyfastgan train` takes, `turns` of them a call."""
    fabric = Fabric(accelerator="cpu", devices=1)
    for key, network in system.networks.items():
        system.networks[key] = fabric.setup_module(network)
    for key, its_optimizer in system.optimizers.items():
        system.optimizers[key] = fabric.setup_optimizers(its_optimizer)
    steps = count(first)
    return lambda: [system.training_step(fabric, batch, next(steps)) for _ in range(turns)]


def our_step(name: str) -> Callable[[], Any]:
    system, batch, first = prepared(name)
    if name == "cyclegan":  # whose rate falls with its steps
        system.config = replace(system.config, steps=10**9)
    return driven(system, batch, first, 2 if name == "biggan" else 1)


def eager_step(name: str, tuned: bool = False) -> Callable[[], None]:
    system, batch, _ = prepared(name)
    if tuned:
        form = torch.channels_last
        batch = tuple(
            part.contiguous(memory_format=form) if part.ndim == 4 else part for part in batch
        )
    return globals()[f"eager_{name}"](system, batch, tuned)


class OneModule(contextlib.AbstractContextManager):
    """In place of torch's tracker of modules: all is counted as one."""

    parents = ("Global",)

    def __exit__(self, *_: object) -> None:
        """Nothing was hooked."""


SIZES = {
    "cgan": "digits 16 px, width 32, batch 64",
    "pix2pix": "edges2photos 32 px, width 32, batch 16",
    "cyclegan": "digits2bold 32 px, width 16, batch 4",
    "progan": "digits 16 px, width 32, batch 32",
    "biggan": "digits 16 px, width 16, batch 64, two steps",
}


def measured(
    measure: Any,
    benchmark: Any,
    name: str,
    size: str,
    ours: Callable[..., Any],
    eager: Callable[..., Any],
) -> None:
    """The row of a preset: `ours(name)`, `eager(name)` and `eager(name, tuned=True)`."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = OneModule()  # torch's hooks on modules know no gradient within a step
    with counter:
        eager(name, tuned=True)()
    row = Row(
        f"{name} training step",
        size,
        lambda: {"ours": ours(name), "eager": eager(name), "eager, tuned": eager(name, tuned=True)},
        bytes=0,
        flops=counter.get_total_flops(),
    )
    served_by = [ops()[op] for op in ("edge_conv", "conv_transpose_act", "norm_act", "bias_act")]
    benchmark.extra_info |= measure(row, served_by, compile_eager=False)["ratios"]
    benchmark.pedantic(ours(name), rounds=3)


@pytest.mark.parametrize("name", SIZES)
def test_step(measure: Any, benchmark: Any, name: str) -> None:
    assert data.has_splits(PRESETS[name].data)
    measured(measure, benchmark, name, SIZES[name], our_step, eager_step)
