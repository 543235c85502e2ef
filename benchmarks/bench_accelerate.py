"""Models of other libraries, made by their own constructors, after `accelerate` and before it.

"eager" is the library as it is. A row with "step" is forward, backward and Adam; "alone" is what the op replaces,
forward and backward, of a model's own layer.
"""

import copy

import diffusers
import FrEIA.framework
import FrEIA.modules
import nflows.transforms
import normflows
import pytest
import torch
import zuko
from bench_dcgan import TUTORIAL, images_for, tutorial_step
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import ResidualNet
from torch import nn
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

import pyfastgan as pf
from pyfastgan.ops._registry import Row, ops

WIDTH, BATCH, BINS = 64, 512, 8


def both(model, make):
    """The same of the model and of an accelerated copy."""
    fast = copy.deepcopy(model)
    assert pf.accelerate(fast).replaced
    return {"ours": make(fast), "eager": make(model)}


def training(loss):
    def make(model):
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)

        def step():
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()

        return step

    return make


def nflows_nsf():
    transforms = []
    for k in range(10):
        mask = torch.tensor([(-1) ** (j + k) for j in range(WIDTH)])
        transforms += [
            nflows.transforms.RandomPermutation(WIDTH),
            nflows.transforms.LULinear(WIDTH, identity_init=True),
            nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
                mask,
                lambda i, o: ResidualNet(i, o, hidden_features=WIDTH),
                num_bins=BINS,
                tails="linear",
                tail_bound=3.0,
            ),
        ]
    return Flow(nflows.transforms.CompositeTransform(transforms), StandardNormal([WIDTH]))


def normflows_nsf():
    flows = []
    for _ in range(5):
        flows += [
            normflows.flows.CoupledRationalQuadraticSpline(WIDTH, 2, WIDTH, num_bins=BINS),
            normflows.flows.LULinearPermute(WIDTH),
        ]
    base = normflows.distributions.DiagGaussian(WIDTH, trainable=False)
    return normflows.NormalizingFlow(base, flows)


def zuko_nsf():
    return zuko.flows.NSF(WIDTH, transforms=3, bins=BINS, hidden_features=(128, 128))


def log_prob_steps(make, distribution=lambda model: model):
    x = torch.randn(BATCH, WIDTH)
    return both(make(), training(lambda m: -distribution(m).log_prob(x).mean()))


def coupling_alone(layer):
    """A coupling's spline, of parameters as its network gives them."""
    x = torch.randn(BATCH, WIDTH // 2, requires_grad=True)
    parameters = torch.randn(BATCH, WIDTH // 2 * (3 * BINS - 1), requires_grad=True)
    dy, dlogdet = torch.randn(BATCH, WIDTH // 2), torch.randn(BATCH)

    def make(m):
        def call():  # the library divides its parameters in place
            outputs = m._coupling_transform(x, parameters.clone())
            return torch.autograd.grad(outputs, (x, parameters), (dy, dlogdet))

        return call

    return both(layer, make)


def zuko_alone():
    """One transformation without its network."""
    flow = zuko.flows.NSF(WIDTH, transforms=1, bins=BINS)
    x = torch.randn(BATCH, WIDTH, requires_grad=True)
    phi = torch.randn(BATCH, WIDTH * (3 * BINS - 1), requires_grad=True)
    dy, dladj = torch.randn(BATCH, WIDTH), torch.randn(BATCH)

    def make(m):
        lazy = m.transform.transforms[0]
        lazy.hyper = nn.Identity()  # the parameters come as its input

        def call():
            outputs = lazy.meta(None, phi).call_and_ladj(x)
            return torch.autograd.grad(outputs, (x, phi), (dy, dladj))

        return call

    return both(flow, make)


def freia_steps(images):
    def net(i, o):
        if images:
            return nn.Sequential(nn.Conv2d(i, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, o, 3, 1, 1))
        return nn.Sequential(nn.Linear(i, 128), nn.ReLU(), nn.Linear(128, o))

    shape = (48, 16, 16) if images else (WIDTH,)
    model = FrEIA.framework.SequenceINN(*shape)
    for _ in range(8):
        model.append(FrEIA.modules.AllInOneBlock, subnet_constructor=net)
    x = torch.randn(64 if images else BATCH, *shape)

    def loss(m):
        z, logdet = m(x)
        return (0.5 * z.square().flatten(1).sum(1) - logdet).mean()

    return both(model, training(loss))


def codebook():
    x = torch.randn(64, 16 * 16, 64, requires_grad=True)
    model = VectorQuantize(dim=64, codebook_size=512)
    return both(model, lambda m: lambda: m(x))


SCHEDULERS = {
    "DDPM": diffusers.DDPMScheduler,
    "DDIM": diffusers.DDIMScheduler,
    "Euler": diffusers.EulerDiscreteScheduler,
    "DPM-Solver++ 2M": diffusers.DPMSolverMultistepScheduler,
    "flow matching": diffusers.FlowMatchEulerDiscreteScheduler,
}


def scheduler(name, images, size):
    """`add_noise`, a level an image, and a step in the middle of 20, which a scheduler has to be taken back to."""
    x, prediction, noise = torch.randn(3, images, 3, size, size)

    def make(m):
        flow = name == "flow matching"
        levels = torch.randint(0, 1000, (images,))
        if name in ("Euler", "DPM-Solver++ 2M", "flow matching"):
            levels = m.timesteps[levels]
        trained = copy.copy(m)
        m.set_timesteps(20)
        t = m.timesteps[10]
        m.is_scale_input_called = True

        def call():
            if hasattr(m, "_step_index"):
                m._step_index = 10
            y = m.step(prediction, t, x).prev_sample
            add = trained.scale_noise if flow else trained.add_noise
            return y, add(x, levels, noise) if flow else add(x, noise, levels)

        if name == "DPM-Solver++ 2M":
            m._step_index = 9
            m.step(prediction, m.timesteps[9], x)
        return call

    return both(SCHEDULERS[name](), make)


def dcgan():
    images = images_for(TUTORIAL)

    def accelerated(network):
        assert pf.accelerate(network).replaced
        return network

    return {
        "ours": tutorial_step(TUTORIAL, images, accelerated),
        "eager": tutorial_step(TUTORIAL, images),
    }


class Residual(nn.Module):
    """A block with a forward of its own, as most code writes it."""

    def __init__(self, channels, norm, act):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.act = act

    def forward(self, x):
        return x + self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))


def own_forward(norm, act):
    x = torch.randn(16, 64, 32, 32)
    model = nn.Sequential(*(Residual(64, norm, act) for _ in range(4)))
    return both(model, training(lambda m: m(x).square().mean()))


SPLINE, COUPLING = "rational_quadratic_spline", "affine_coupling"
POINTS = f"{BATCH} x {WIDTH}, K={BINS}"
ROWS = {
    "nflows NSF step": (f"10 layers, {POINTS}", lambda: log_prob_steps(nflows_nsf), SPLINE),
    "nflows spline alone": (
        POINTS,
        lambda: coupling_alone(nflows_nsf()._transform._transforms[2]),
        SPLINE,
    ),
    "normflows NSF step": (f"5 layers, {POINTS}", lambda: log_prob_steps(normflows_nsf), SPLINE),
    "normflows spline alone": (
        POINTS,
        lambda: coupling_alone(normflows_nsf().flows[0].prqct),
        SPLINE,
    ),
    "zuko NSF step": (
        f"3 layers, {POINTS}",
        lambda: log_prob_steps(zuko_nsf, lambda m: m()),
        SPLINE,
    ),
    "zuko spline alone": (POINTS, zuko_alone, SPLINE),
    "FrEIA AllInOneBlock step": (
        f"8 blocks, {BATCH} x {WIDTH}",
        lambda: freia_steps(False),
        COUPLING,
    ),
    "FrEIA AllInOneBlock step, images": (
        "8 blocks, 64,48,16,16",
        lambda: freia_steps(True),
        COUPLING,
    ),
    "VectorQuantize training forward": ("16384 x 512 x 64", codebook, "nearest_code"),
    "DCGAN tutorial step": ("64 px, batch 64", dcgan, "norm_act"),
    "own forward, batch norm and ReLU": (
        "4 residual blocks, 16,64,32,32",
        lambda: own_forward(nn.BatchNorm2d, nn.ReLU()),
        "norm_act",
    ),
    "own forward, group norm and SiLU": (
        "4 residual blocks, 16,64,32,32",
        lambda: own_forward(lambda c: nn.GroupNorm(8, c), functional.silu),
        "norm_act",
    ),
    **{
        f"diffusers {name} step + add_noise, {images} images": (
            f"{images},3,{size},{size}",
            lambda name=name, images=images, size=size: scheduler(name, images, size),
            "denoise_step",
        )
        for name in SCHEDULERS
        for images, size in ((4, 32), (16, 64), (64, 64))
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_accelerated(measure, benchmark, name):
    shape, make, op = ROWS[name]
    row = Row(f"accelerate: {name}", shape, make, bytes=0)
    benchmark.extra_info |= measure(row, [ops()[op]], compile_eager=False)["ratios"]
    benchmark(make()["ours"])
