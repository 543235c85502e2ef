"""What a CUDA graph cannot hold is in no step of a system that has a period, and in no sampling loop: no number is read
back, no shape depends on one, and no table is made on the host. Seen from the operators that a step runs on a CPU."""

import traceback
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfastgan
from pyfastgan.diffusion.choices import make_sampler
from pyfastgan.diffusion.config import DiffusionConfig
from pyfastgan.diffusion.system import DiffusionSystem
from pyfastgan.flow.config import FlowConfig
from pyfastgan.flow.system import FlowSystem
from pyfastgan.gan.config import GANConfig
from pyfastgan.gan.trainer import GAN, KINDS, PRESETS
from pyfastgan.training.config import resolve_config
from pyfastgan.training.graphs import GraphedSteps
from pyfastgan.vae.config import VAEConfig
from pyfastgan.vae.system import VAESystem

# Operators that wait for a GPU; `lift_fresh` is a tensor of Python numbers, which are copied there.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount", "repeat_interleave",
    "_linalg_check_errors", "lift_fresh",
}  # fmt: skip
# They look at the values of tensors on a CPU alone.
ON_CPU = {"_check_level", "check_range", "_continuous", "check_not_singular"}


PACKAGE = str(Path(pyfastgan.__file__).parent)


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        indices = args[1] if name.startswith("index") and len(args) > 1 else ()
        masks = isinstance(indices, list | tuple) and any(
            getattr(i, "dtype", None) in (torch.bool, torch.uint8) for i in indices
        )
        if name in WAITS or masks:
            ours = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
            if not ON_CPU & {f.name for f in ours[-2:]}:
                self.found.append((name, [f"{f.filename}:{f.lineno}" for f in ours[-2:]]))
        return function(*args, **(kwargs or {}))


class Fabric:
    device = torch.device("cpu")
    global_rank, world_size = 0, 1
    strategy, autocast = SimpleNamespace(precision=None), nullcontext

    def backward(self, loss):
        loss.backward()

    def all_reduce(self, value, **_):
        return value

    def clip_gradients(self, network, optimizer, *, max_norm, **_):
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)


def images(count=8, channels=1):
    return torch.rand((count, channels, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1


def flow(**options):
    x = images() if "image_size" in options else torch.randn(8, 2)
    data = torch.utils.data.TensorDataset(x, torch.arange(8))
    return FlowSystem(FlowConfig(width=8, layers=2, **options), data), (x,)


def diffusion(**options):
    config = DiffusionConfig(width=16, image_size=8, channels=1, **options)
    return DiffusionSystem(config), (images(), torch.arange(8))


def penalised():
    config = GANConfig(
        image_size=16, channels=1, width=8, latent_dim=8, penalty="wgan-gp", discriminator_steps=2
    )
    return GAN(config), (torch.randn(8, 1, 16, 16),)


def vae():
    config = VAEConfig(image_size=8, channels=1, width=8, latent_dim=2)
    return VAESystem(config, None, None), (images(),)


def gan(name, **options):
    kind = KINDS[type(PRESETS[name])]
    config = resolve_config(type(PRESETS[name]), PRESETS[name], width=8, **options)
    _, dataset, build = kind.prepare(config, None)
    items = zip(*(dataset[k] for k in range(4)))
    return build(), tuple(torch.stack([torch.as_tensor(part) for part in parts]) for parts in items)


SYSTEMS = {
    "glow": lambda: flow(flow="glow", image_size=8, channels=1, scales=1),
    "maf": lambda: flow(flow="maf"),
    "nsf": lambda: flow(flow="nsf"),
    "ddpm": lambda: diffusion(learned_variance=True, conditional=True, classes=10, dropout=0.1),
    "edm": lambda: diffusion(objective="edm"),
    "wgan-gp": penalised,
    "vae": vae,
    "biggan": lambda: gan("biggan", discriminator_steps=2),
    "stylegan2": lambda: gan("stylegan2", r1_interval=2, path_interval=3, latent_dim=8),
    "pix2pix": lambda: gan("pix2pix"),
    "veegan": lambda: gan("veegan"),
    "gmmn": lambda: gan("gmmn", space="data"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_does_not_wait(name):
    system, batch = SYSTEMS[name]()
    assert system.period == {"wgan-gp": 2, "biggan": 2, "stylegan2": 6}.get(name, 1)
    fabric = Fabric()
    # Of the steps with all that is ever due; the first makes what is kept.
    system.training_step(fabric, batch, system.period)
    with Waits() as waits:
        losses = system.training_step(fabric, batch, 2 * system.period)
    assert not waits.found
    assert all(loss.isfinite() for loss in losses.values())


def test_waits_are_seen():
    x = torch.ones(3)
    for wait in (
        lambda: float(x[0]),
        lambda: x[x > 0],
        lambda: torch.tensor([1.0]),
        lambda: torch.linalg.inv(torch.eye(2)),
        x.nonzero,
    ):
        with Waits() as waits:
            wait()
        assert waits.found


def test_what_differs_in_every_step_has_no_period():
    for options in ({"self_conditioning": True}, {"ema_snapshots": 5}):
        assert diffusion(**options)[0].period == 0
    assert diffusion(objective="flow", coupling="optimal")[0].period == 0
    assert gan("gmmn", space="code")[0].period == 0
    for name in ("cyclegan", "progan"):
        assert not hasattr(gan(name)[0], "period")


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun"])
def test_a_sampling_loop_does_not_wait(sampler):
    """With a sampler that is there already, whose tables a first call moves."""
    system, _ = diffusion(conditional=True, classes=3)
    model = system.networks["model"].eval()
    sampler = make_sampler(model.process, sampler, 3, clip=model.clip)
    seeds = torch.arange(4)
    expected = model.sample(4, seeds, sampler=sampler, guidance=2.0)
    with Waits() as waits:
        found = model.sample(4, seeds, sampler=sampler, guidance=2.0)
    assert not waits.found
    assert torch.equal(found, expected)


def test_a_captured_step_reads_the_rate_of_its_own_step():
    """A rate that rises and falls, with a capture that runs the first step's Python again."""
    found = []
    for graphed in (False, True):
        torch.manual_seed(0)
        system, batch = flow(flow="maf", warmup_steps=4, decay_steps=9, learning_rate=0.1)
        fabric = Fabric()
        if graphed:
            run = GraphedSteps(system, fabric, capture=lambda f: f, warm=lambda f: f())
            rate = system.optimizers["model"].param_groups[0]["lr"]
        for step in range(1, 9):
            system.prepare(step)
            run(batch, step) if graphed else system.training_step(fabric, batch, step)
        found.append([p.detach().clone() for p in system.networks["model"].parameters()])
    assert system.optimizers["model"].param_groups[0]["lr"] is rate
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
