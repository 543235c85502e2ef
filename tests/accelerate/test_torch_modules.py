"""Rows of `torch.nn`, among them the networks of PyTorch's DCGAN tutorial."""

import copy

import pytest
import torch
from same import check
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import pyfastgan as pf


class Generator(nn.Module):
    """The tutorial's, smaller."""

    def __init__(self, latent=10, width=8, channels=3):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(latent, width * 2, 4, 1, 0, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, input):
        return self.main(input)


class Discriminator(nn.Module):
    def __init__(self, width=8, channels=3):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width * 2, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, input):
        return self.main(input)


class Mixed(nn.Module):
    """Other norms, activations and layers between the runs."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.InstanceNorm2d(8, affine=True),
            nn.SiLU(),
            nn.Dropout2d(0.0),
            nn.Conv2d(8, 8, 4, 2, 1),
            nn.GroupNorm(2, 8),
            nn.GELU(),
            nn.Upsample(scale_factor=2),
            nn.GroupNorm(4, 8),
            nn.Sequential(nn.Conv2d(8, 3, 5, 1, 2), nn.Softplus()),
            nn.Flatten(),
            nn.Linear(3 * 16 * 16, 2),
        )

    def forward(self, x):
        return self.main(x)


def images(seed=0, n=5):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    "generator": (Generator, torch.randn(5, 10, 1, 1, generator=torch.Generator().manual_seed(0))),
    "discriminator": (Discriminator, images()),
    "mixed": (Mixed, images()),
    "channels last": (
        lambda: Discriminator().to(memory_format=torch.channels_last),
        images().contiguous(memory_format=torch.channels_last),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    make, x = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    weights = torch.randn(model(x).shape)
    check(model, lambda m: (m(x) * weights).square().mean(), {"Sequential"})


def test_the_layout_of_the_result():
    """What a user does with the result, `view` above all, works as before."""
    torch.manual_seed(0)
    for make, x in NETWORKS.values():
        model = make()
        y = model(x)
        pf.accelerate(model)
        ours = model(x)
        if y.is_contiguous():
            ours.view(-1)
    wide = row(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    pf.accelerate(wide)
    wide(images()).view(-1)


def row(*modules):
    return nn.Sequential(*modules)


def test_what_is_left_alone():
    torch.manual_seed(0)
    hooked = nn.Conv2d(3, 8, 3)
    hooked.register_forward_hook(lambda *_: None)

    class Mine(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    odd = {
        "hooks": hooked,
        "(WeightNorm)": weight_norm(nn.Conv2d(3, 8, 3)),
        "parametrised": parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)),
        "subclass": Mine(3, 8, 3),
        "groups": nn.Conv2d(3, 9, 3, groups=3),
        "differs between the axes": nn.Conv2d(3, 8, (3, 5), padding=(1, 2)),
    }
    x = images()
    for reason, conv in odd.items():
        model = row(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()).eval()
        expected = model(x)
        report = pf.accelerate(model)
        assert [reason in s.reason for s in report.skipped] == [True], (reason, report)
        assert report.skipped[0].name == "0"
        # The norm and the activation are a run of their own.
        assert [r.kind for r in report.replaced] == ["Sequential"]
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_hooks_that_come_later():
    torch.manual_seed(0)
    model = row(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    pf.accelerate(model)
    seen = []
    for module in model:
        module.register_forward_hook(lambda module, _, y: seen.append(type(module).__name__))
    model(images())
    assert seen == ["Conv2d", "BatchNorm2d", "ReLU"]


def test_half_precision():
    x = images()
    model = row(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    half = copy.deepcopy(model).bfloat16()
    report = pf.accelerate(half)
    assert report.replaced == []
    assert {s.reason for s in report.skipped} == {"it holds bfloat16"}
    # Made half afterwards, or under autocast, torch's own layers serve.
    fast = copy.deepcopy(model)
    pf.accelerate(fast)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), model(x))
    fast.load_state_dict(model.state_dict())
    assert torch.equal(fast.bfloat16()(x.bfloat16()), model.bfloat16()(x.bfloat16()))


def test_shared_modules():
    torch.manual_seed(0)
    norm, act = nn.BatchNorm2d(8), nn.ReLU()
    model = row(nn.Conv2d(3, 8, 3), norm, act, nn.Conv2d(8, 8, 3), norm, act)
    x = images()
    check(model, lambda m: m(x).square().mean(), {"Sequential"})


def test_a_subclass_of_a_row():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    model = Residual(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    (skipped,) = pf.accelerate(model).skipped
    assert "subclass of Sequential" in skipped.reason
    assert pf.accelerate(nn.Sequential(nn.Linear(3, 4), nn.ReLU())).skipped == []
    assert pf.accelerate(zero := nn.Identity()).replaced == []
    assert type(zero) is nn.Identity


def test_a_forward_of_its_own():
    model = row(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model.forward = lambda x: x
    (skipped,) = pf.accelerate(model).skipped
    assert "forward was replaced" in skipped.reason


def test_a_second_derivative():
    """A gradient penalty on an accelerated critic."""
    torch.manual_seed(0)
    critic = row(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 8))
    fast = copy.deepcopy(critic)
    assert pf.accelerate(fast).replaced
    x = images().requires_grad_()
    found = []
    for m in (critic, fast):
        (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        penalty = (g.flatten(1).norm(dim=1) - 1).square().mean()
        found.append(torch.autograd.grad(penalty, list(m.parameters()), allow_unused=True))
    for ours, theirs in zip(*found[::-1], strict=True):
        if theirs is None or ours is None:
            assert all(t is None or not t.any() for t in (ours, theirs))
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_something_else():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module.*got builtins\.list"):
        pf.accelerate([nn.Linear(2, 2)])
