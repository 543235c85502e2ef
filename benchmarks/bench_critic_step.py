"""Critic steps under a gradient penalty, and whole steps of both players.

Eager is autograd with `create_graph=True`, as the field writes it: real and generated samples judged
apart, the penalty's gradient on a pass of its own or, for R1 and R2, on the same pass. `compile` is
the best compiled form of that which can be made to work, `torch.compile` of the graph that `make_fx`
writes of the whole step; the R1 step also has `torch.compile` with `trace_autograd_ops`, and nested
`torch.func.grad`. The limit is that of the forward, data and weight gradients of the fused scheme at
the rate of a matrix product. With --quick some shapes are left out, and all compiling but R1's.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from pyfastgan.gan import (
    adversarial_step,
    critic_step,
    discriminator_loss,
    generator_loss,
    penalty_gradient,
)
from pyfastgan.gan.critic_step import plan_of
from pyfastgan.gan.layer_passes import (
    backward,
    effective_weights,
    forward,
    pulled,
    weight_gradients,
)
from pyfastgan.gan.passes import explicit
from pyfastgan.ops._registry import Row, ops


def critic(pixels: int, width: int = 64, norm: Any = None) -> nn.Sequential:
    """DCGAN's, without batch norm: 4 x 4 convolutions of stride 2, leaky ReLU."""
    layers: list[nn.Module] = []
    channels, size = 3, pixels
    while size > 4:
        out = width if channels == 3 else 2 * channels
        layers.append(nn.Conv2d(channels, out, 4, 2, 1))
        if norm is not None and channels != 3:
            layers.append(norm(out, size // 2))
        layers.append(nn.LeakyReLU(0.2))
        channels, size = out, size // 2
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 4), nn.Flatten())


def generator(pixels: int, width: int = 64, latent: int = 100) -> nn.Sequential:
    sizes, layers = pixels // 8, []
    channels = width * sizes
    layers += [nn.ConvTranspose2d(latent, channels, 4), nn.ReLU()]
    while channels > width:
        layers += [nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1), nn.ReLU()]
        channels //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh())


NORMS = {
    "none": None,
    "instance": lambda c, s: nn.InstanceNorm2d(c, affine=True),
    "layer": lambda c, s: nn.GroupNorm(1, c),
}


def data(batch: int, pixels: int, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    form = torch.channels_last if layout == "channels last" else torch.contiguous_format
    real, fake = torch.randn(2, batch, 3, pixels, pixels)
    return real.contiguous(memory_format=form), fake.contiguous(memory_format=form)


def laid(net: nn.Module, layout: str) -> nn.Module:
    return net.to(memory_format=torch.channels_last) if layout == "channels last" else net


def penalty_of(
    x: torch.Tensor, judged: torch.Tensor, weight: float, slope_one: bool
) -> torch.Tensor:
    (g,) = torch.autograd.grad(judged.sum(), x, create_graph=True)
    if slope_one:
        return weight * (g.flatten(1).norm(dim=1) - 1).square().mean()
    return weight / 2 * g.square().sum((1, 2, 3)).mean()


def eager_loss(net: Any, real: Any, fake: Any, loss: str, penalty: str | None) -> torch.Tensor:
    real = real.detach().requires_grad_(penalty in ("r1", "r1r2"))
    fake = fake.detach().requires_grad_(penalty in ("r2", "r1r2"))
    of_real, of_fake = net(real)[:, 0], net(fake)[:, 0]
    total = discriminator_loss(loss, of_real, of_fake)
    if penalty in ("r1", "r1r2"):
        total = total + penalty_of(real, of_real, 10.0, False)
    if penalty in ("r2", "r1r2"):
        total = total + penalty_of(fake, of_fake, 10.0, False)
    if penalty == "wgan-gp":
        share = torch.rand(len(real), 1, 1, 1)
        x = torch.lerp(fake, real, share).requires_grad_()
        total = total + penalty_of(x, net(x)[:, 0], 10.0, True)
    return total


def real_half(net: nn.Module, real: torch.Tensor) -> tuple[Any, Any]:
    """The real half of a non-saturating step with R1: fused, and by autograd."""
    plan, _ = plan_of(net, real, None)
    assert plan is not None
    count, ones = len(real), torch.full((len(real),), 1 / len(real))

    def fused() -> Any:
        with explicit(real.device):
            weights, pulls = effective_weights(plan, None)
            values, kept = forward(plan, weights, real, None)
            output = values.pop(plan.output)
            slope = -torch.sigmoid(-output[:, 0])
            deltas, g = backward(plan, weights, values, kept, ones, output, count)
            assert g is not None
            _, v, _ = penalty_gradient("r1", g * count, 10.0)
            found = weight_gradients(
                plan, weights, values, kept, deltas, slope, v * count, count, False
            )
            return pulled(plan, pulls, found)

    def eager() -> Any:
        x = real.detach().requires_grad_()
        judged = net(x)[:, 0]
        total = nn.functional.softplus(-judged).mean() + penalty_of(x, judged, 10.0, False)
        return torch.autograd.grad(total, list(net.parameters()))

    return fused, eager


def compiled_forms(
    net: nn.Module, real: torch.Tensor, fake: torch.Tensor, loss: str, penalty: str
) -> dict[str, Any]:
    """The ways around what `torch.compile` says to `autograd.grad` in a step, each in its best form."""
    params = list(net.parameters())

    def gradients(real: torch.Tensor, fake: torch.Tensor) -> Any:
        return torch.autograd.grad(eager_loss(net, real, fake, loss, penalty), params)

    def functional(real: torch.Tensor, fake: torch.Tensor) -> Any:
        def total(weights: Any) -> torch.Tensor:
            def judge(x: torch.Tensor) -> torch.Tensor:
                return torch.func.functional_call(net, weights, (x,))[:, 0]

            g = torch.func.grad(lambda x: judge(x).sum())(real)
            found = discriminator_loss(loss, judge(real), judge(fake))
            return found + 5 * g.square().sum((1, 2, 3)).mean()

        return torch.func.grad(total)(dict(net.named_parameters()))

    # For this contestant alone: a compiled step of other rows is another one under the flag.
    flagged = torch._dynamo.config.patch(trace_autograd_ops=True)(torch.compile(gradients))
    nested = torch.compile(functional)
    return {
        "compile": traced(net, real, fake, loss, penalty),
        "trace_autograd_ops": lambda: flagged(real, fake),
        "torch.func": lambda: nested(real, fake),
    }


def traced(
    net: nn.Module, real: torch.Tensor, fake: torch.Tensor, loss: str, penalty: str | None
) -> Any:
    """The whole eager step, both of its backward passes written out by `make_fx`, and compiled."""
    params = list(net.parameters())

    def gradients(real: torch.Tensor, fake: torch.Tensor) -> Any:
        return torch.autograd.grad(eager_loss(net, real, fake, loss, penalty), params)

    found: list[Any] = []

    def run() -> Any:
        if not found:
            found.append(torch.compile(make_fx(gradients)(real, fake)))
        with torch.no_grad():
            return found[0](real, fake)

    return run


def _of_features(feature: Any, weight: Any) -> int:
    """Operations of a convolution of ours whose features and weight have these shapes."""
    return 2 * math.prod(feature) * math.prod(weight[1:])


OURS = {
    torch.ops.pyfastgan.edge_conv: lambda x, w, *_, out_shape, **__: _of_features(out_shape, w),
    torch.ops.pyfastgan.edge_conv_transpose: lambda x, w, *_, **__: _of_features(x, w),
    torch.ops.pyfastgan.edge_conv_weight: lambda x, dy, *_, out_shape, **__: _of_features(
        dy, out_shape[0]
    ),
    # As many as the convolution has; the kernel takes 9/16 of them.
    torch.ops.pyfastgan.conv_weight_tiles: lambda x, dy, *_, out_shape, **__: _of_features(
        dy, out_shape
    ),
}


def flops(call: Any) -> float:
    with FlopCounterMode(display=False, custom_mapping=OURS) as counter:
        call()
    return counter.get_total_flops()


REAL_HALF = [
    (16, 32, "contiguous"),
    (64, 32, "channels last"),
    (16, 64, "contiguous"),
    (64, 32, "contiguous"),
    (32, 64, "channels last"),
]
STEPS = [
    ("non-saturating", "r1", "none", "contiguous"),
    ("non-saturating", "r1", "none", "channels last"),
    ("relativistic", "r1r2", "none", "contiguous"),
    ("wgan", "wgan-gp", "none", "contiguous"),
    ("wgan", "wgan-gp", "instance", "contiguous"),
    ("wgan", "wgan-gp", "layer", "contiguous"),
    ("relativistic", "r1r2", "none", "channels last"),
    ("wgan", "wgan-gp", "none", "channels last"),
    ("wgan", "wgan-gp", "instance", "channels last"),
    ("wgan", "wgan-gp", "layer", "channels last"),
]


def pytest_generate_tests(metafunc: Any) -> None:
    """With --quick the first shapes of each table."""
    quick = metafunc.config.option.quick
    if "pixels" in metafunc.fixturenames:
        metafunc.parametrize(("batch", "pixels", "layout"), REAL_HALF[: 3 if quick else None])
    elif "penalty" in metafunc.fixturenames:
        names = ("loss", "penalty", "norm", "layout")
        metafunc.parametrize(names, STEPS[: 6 if quick else None])


def report(measure: Any, benchmark: Any, row: Row, compiled: bool) -> None:
    result = measure(row, [ops()["edge_conv"], ops()["bias_act"]], compile_eager=compiled)
    benchmark.extra_info |= result["ratios"]
    benchmark.pedantic(row.make()["ours"], rounds=3)


def test_real_half_with_r1(
    measure: Any, benchmark: Any, batch: int, pixels: int, layout: str
) -> None:
    def make() -> dict[str, Any]:
        net, (real, _) = laid(critic(pixels), layout), data(batch, pixels, layout)
        ours, eager = real_half(net, real)
        return {"ours": ours, "eager": eager}

    shape = f"{batch},3,{pixels},{pixels} {layout}"
    work = flops(make()["ours"])
    row = Row("real half of a critic step with R1", shape, make, 0, work)
    report(measure, benchmark, row, compiled=False)


def test_critic_step(
    measure: Any, benchmark: Any, request: Any, loss: str, penalty: str, norm: str, layout: str
) -> None:
    batch, pixels = 32, 32
    # Compiling takes longer than measuring: each penalty once, and with --quick R1 alone.
    compiled = norm == "none" and layout == "contiguous"
    compiled = compiled and (penalty == "r1" or not request.config.option.quick)

    def make() -> dict[str, Any]:
        net = laid(critic(pixels, norm=NORMS[norm]), layout)
        real, fake = data(batch, pixels, layout)

        def ours() -> None:
            net.zero_grad()
            critic_step(net, real, fake, loss=loss, penalty=penalty)

        def eager() -> None:
            net.zero_grad()
            eager_loss(net, real, fake, loss, penalty).backward()

        found = {"ours": ours, "eager": eager}
        if compiled and penalty == "r1":
            found |= compiled_forms(net, real, fake, loss, penalty)
        elif compiled:
            found["compile"] = traced(net, real, fake, loss, penalty)
        return found

    name = f"critic step, {loss}, {penalty}" + ("" if norm == "none" else f", {norm} norm")
    work = flops(make()["ours"])
    row = Row(name, f"{batch},3,{pixels},{pixels} {layout}", make, 0, work)
    report(measure, benchmark, row, compiled)


@pytest.mark.parametrize(("size", "width"), [("as large", 64), ("small", 16)])
def test_adversarial_step(measure: Any, benchmark: Any, size: str, width: int) -> None:
    batch, pixels, layout = 32, 32, "contiguous"

    def make() -> dict[str, Any]:
        net, (real, _) = critic(pixels), data(batch, pixels, layout)
        g, z = generator(pixels, width), torch.randn(batch, 100, 1, 1)
        other, h = critic(pixels), generator(pixels, width)

        def ours() -> None:
            net.zero_grad()
            g.zero_grad()
            adversarial_step(
                g, net, real, z, loss="relativistic", penalty="r1r2", update="simultaneous"
            )

        def eager() -> None:
            other.zero_grad()
            h.zero_grad()
            made = h(z)
            eager_loss(other, real, made.detach(), "relativistic", "r1r2").backward()
            other.requires_grad_(False)
            with torch.no_grad():
                of_real = other(real)[:, 0]
            generator_loss("relativistic", other(made)[:, 0], of_real).backward()
            other.requires_grad_(True)

        return {"ours": ours, "eager": eager}

    name = f"adversarial step, R1 + R2, simultaneous, generator {size}"
    work = flops(make()["ours"])
    row = Row(name, f"{batch},3,{pixels},{pixels}", make, 0, work)
    report(measure, benchmark, row, compiled=False)
