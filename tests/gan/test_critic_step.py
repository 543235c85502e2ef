"""`critic_step` against autograd's double backward, of every critic, in any precision and layout."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import critics
import pytest
import torch
from critic_steps import COUNT, batch, by_autograd, by_step
from critics import COMBINATIONS, CRITICS, VARIATIONAL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyfastgan.gan import critic_step, discriminator_loss, gradient_penalty, passes
from pyfastgan.gan.critic_step import add_gradients


def errors(
    found: dict[str, Tensor], exact: dict[str, Tensor], floor: float = 1e-4
) -> dict[str, float]:
    """Relative to the gradient's norm, or to a part of the largest where one vanishes in theory, as
    that of the last bias under a Wasserstein loss."""
    # Where all vanish, as behind dead units, the errors are absolute.
    largest = max(float(g.detach().norm()) for g in exact.values()) or 1 / floor
    return {
        name: float((found[name].double() - g).norm().detach())
        / max(float(g.detach().norm()), floor * largest)
        for name, g in exact.items()
    }


CASES = [
    (name, *COMBINATIONS[(k + j) % len(COMBINATIONS)], (k + j) % 2 == 0)
    for k, name in enumerate(CRITICS)
    for j in (0, 1, 3)
]
CASES += [("residual", *pair, False) for pair in VARIATIONAL]
CASES += [("silu", *pair, True) for pair in VARIATIONAL[:2]]


@pytest.mark.parametrize(("name", "loss", "penalty", "last"), CASES)
def test_gradients_are_autograds(name: str, loss: str, penalty: str | None, last: bool) -> None:
    """float64 to 1e-9; float32 twice autograd's own error, plus what a sum of a few hundred products
    in another order may differ by."""
    more = {"weight": 20.0, "seed": 1, "condition": critics.condition(name, COUNT)}
    steep = 3.0 if penalty == "wgan-gp-one-sided" else 1.0
    critic, (real, fake) = critics.make(name, gain=steep), batch(last=last)
    if last:
        critic = critic.to(memory_format=torch.channels_last)
    exact = by_autograd(critic, real, fake, loss, penalty, **more)
    for key, error in errors(by_step(critic, real, fake, loss, penalty, **more), exact).items():
        assert error < 1e-9, key
    # Slopes below 1 have no one-sided penalty, and spectral norm allows no others.
    assert penalty is None or name == "spectral norm" or float(exact["penalty"].detach()) > 0

    single = critics.make(name, torch.float32, gain=steep)
    args = (single, real.float(), fake.float(), loss, penalty)
    own = errors(by_autograd(*args, **more), exact, 0.1)
    for key, error in errors(by_step(*args, **more), exact, 0.1).items():
        assert error <= 2 * own[key] + 2e-6, key


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_widths_kernels_and_strides(data: st.DataObject) -> None:
    draw = data.draw
    layers: list[nn.Module] = []
    channels, size = 2, draw(st.integers(7, 9), label="size")
    pixels = size
    torch.manual_seed(0)
    for _ in range(draw(st.integers(1, 3), label="layers")):
        out, kernel = draw(st.integers(1, 5)), draw(st.integers(1, min(4, size)))
        stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, kernel - 1))
        layers += [nn.Conv2d(channels, out, kernel, stride, padding, bias=draw(st.booleans()))]
        layers += [draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.3), nn.SiLU()]))]
        channels, size = out, (size + 2 * padding - kernel) // stride + 1
    critic = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size**2, 1)).double()
    real, fake = torch.randn(2, 3, 2, pixels, pixels, dtype=torch.float64)
    loss, penalty = draw(st.sampled_from(COMBINATIONS))
    exact = by_autograd(critic, real, fake, loss, penalty, seed=2)
    for key, error in errors(by_step(critic, real, fake, loss, penalty, seed=2), exact).items():
        assert error < 1e-9, key


class Shared(nn.Module):
    """An activation's input and its output that others look at, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = nn.functional.leaky_relu(h, 0.3)
        return self.head(nn.functional.relu(self.a(y) + y) + self.b(y) * h)


def ends(padding: int = 0, act: nn.Module | None = None) -> nn.Sequential:
    """Kernels as large as what they look at."""
    size = 1 + 2 * padding
    last = nn.Conv2d(4, 1, size, bias=False)
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1),
        act or nn.LeakyReLU(0.2),
        nn.Conv2d(6, 4, 4, 1, padding),
        nn.ReLU(),
        last,
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "critic",
    [
        Shared,
        ends,
        lambda: ends(1),
        lambda: ends(0, nn.SiLU()),
        lambda: ends(0, nn.InstanceNorm2d(6)),
    ],
    ids=["shared", "whole", "padded", "whole, silu", "whole, norm"],
)
def test_layers_that_share_memory(critic: Callable[[], nn.Module], last: bool) -> None:
    """Masks that are laid on in place, activations on a convolution's way, and last convolutions that
    are matrices."""
    torch.manual_seed(5)
    net, (real, fake) = critic().double(), batch(last=last)
    more = {"weight": 20.0, "seed": 3}
    for loss, penalty in (("wgan", "wgan-gp"), ("relativistic", "r1r2"), ("hinge", None)):
        exact = by_autograd(net, real, fake, loss, penalty, **more)
        found = errors(by_step(net, real, fake, loss, penalty, **more), exact)
        assert max(found.values()) < 1e-9, (loss, found)


def test_a_norm_in_front() -> None:
    """Whose weights have gradients, where nobody asks for that of its input."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.GroupNorm(1, 3), nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU())
    critic = nn.Sequential(net, nn.Flatten(), nn.Linear(216, 1)).double()
    real, fake = batch()
    exact = by_autograd(critic, real, fake, "hinge", None)
    assert max(errors(by_step(critic, real, fake, "hinge", None), exact).values()) < 1e-9


@pytest.mark.parametrize(("dims", "shape"), [(0, ()), (1, (9,)), (3, (5, 5, 5))])
def test_samples_that_are_no_images(dims: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    if dims == 0:
        critic = nn.Sequential(
            nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
        )
    else:
        conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims](2, 4, 3, 2)
        critic = nn.Sequential(
            conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * (2**dims if dims == 3 else 4), 1)
        )
    critic = critic.double()
    real, fake = torch.randn(2, 5, 2, *shape, dtype=torch.float64)
    exact = by_autograd(critic, real, fake, "wgan", "wgan-gp", seed=1)
    found = by_step(critic, real, fake, "wgan", "wgan-gp", seed=1)
    assert max(errors(found, exact).values()) < 1e-9


@pytest.mark.parametrize(
    ("name", "loss", "penalty"),
    [
        # The generated samples first and gone; a loss of pairs, which needs both; the real samples first.
        ("leaky relu", "non-saturating", "r1"),
        ("silu", "relativistic", "r1"),
        ("spectral norm", "minimax", "r2"),
        # Both before the points between or around them; labels.
        ("projection", "wgan", "wgan-gp"),
        ("instance norm", "hinge", "dragan"),
    ],
)
def test_large_batches_take_their_passes_in_parts(
    monkeypatch: pytest.MonkeyPatch, name: str, loss: str, penalty: str
) -> None:
    critic, (real, fake) = critics.make(name), batch()
    more = {"weight": 20.0, "seed": 1, "condition": critics.condition(name, COUNT)}
    exact = by_autograd(critic, real, fake, loss, penalty, **more)
    monkeypatch.setattr(passes, "_LARGE", 1)
    sizes: list[int] = []
    forward = passes.forward

    def watched(plan: Any, weights: Any, x: Tensor, condition: Any) -> Any:
        sizes.append(len(x))
        return forward(plan, weights, x, condition)

    monkeypatch.setattr(passes, "forward", watched)
    for key, error in errors(by_step(critic, real, fake, loss, penalty, **more), exact).items():
        assert error < 1e-9, key
    assert sizes == ([COUNT, COUNT] if penalty in ("r1", "r2") else [2 * COUNT, COUNT])


def test_a_step_in_parts_needs_less_memory_than_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 0.8 of it under R1, in bytes of torch's allocator beyond those at the start."""
    critic = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 1, 8),
        nn.Flatten(),
    )
    real, fake = torch.randn(2, 12, 3, 32, 32)
    monkeypatch.setattr(passes, "_LARGE", 1)

    def peak(run: Callable[[], Any]) -> int:
        run()
        with torch.profiler.profile(profile_memory=True) as found:
            run()
        events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
        return max(held)

    ours = peak(lambda: critic_step(critic, real, fake, loss="non-saturating", penalty="r1"))
    theirs = peak(lambda: by_autograd(critic, real, fake, "non-saturating", "r1"))
    assert ours <= 0.8 * theirs


@pytest.mark.parametrize("last", [False, True])
def test_gradients_lie_as_their_parameters(last: bool) -> None:
    """A fused optimizer goes through both in the order of memory."""
    layout = torch.channels_last if last else torch.contiguous_format
    critic = nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 4, 4, 2, 1), nn.Conv2d(4, 1, 2)
    ).to(memory_format=layout)  # fmt: skip
    real, fake = torch.randn(2, 4, 3, 8, 8)
    assert critic_step(critic, real, fake, loss="wgan", penalty="r1", weight=1.0).plan == "fused"
    for p in critic.parameters():
        assert p.grad is not None
        assert p.grad.stride() == p.stride()


def test_r1_of_a_linear_critic() -> None:
    """w / 2 |a|^2 for D(x) = a.x, with the gradient w a."""
    critic = nn.Linear(6, 1, bias=False).double()
    real = torch.zeros(3, 6, dtype=torch.float64)
    step = critic_step(critic, real, real, loss="wgan", penalty="r1", weight=3.0)
    a = critic.weight.detach()
    torch.testing.assert_close(step.penalty, 1.5 * a.square().sum())
    torch.testing.assert_close(step.gradient_norm, a.norm())
    torch.testing.assert_close(critic.weight.grad, 3 * a)


def test_inputs_stay_and_gradients_add() -> None:
    critic, (real, fake) = critics.make("functional"), batch()
    kept = real.clone(), fake.clone()
    once = by_step(critic, real, fake, "hinge", "r1r2")
    once = {key: g.clone() for key, g in once.items()}
    critic_step(critic, real, fake, loss="hinge", penalty="r1r2")
    for key, p in critic.named_parameters():
        assert torch.equal(p.grad, 2 * once[key]), "the same bits twice"
    assert torch.equal(real, kept[0])
    assert torch.equal(fake, kept[1])


def test_spectral_norm_takes_one_power_iteration_a_step() -> None:
    critic, (real, fake) = critics.make("spectral norm").train(), batch()
    norm = critic[0].parametrizations.weight[0]
    twin = copy.deepcopy(norm)
    critic_step(critic, real, fake, loss="hinge", penalty="r1r2")
    twin(critic[0].parametrizations.weight.original)
    torch.testing.assert_close(norm._u, twin._u)


def test_frozen_parts_get_no_gradient() -> None:
    critic, (real, fake) = critics.make("residual"), batch()
    critic.a.requires_grad_(False)
    exact = by_autograd_of_trained(critic, real, fake)
    critic_step(critic, real, fake, loss="hinge", penalty="r1")
    assert critic.a.weight.grad is None
    assert critic.a.bias.grad is None
    for p, g in exact:
        torch.testing.assert_close(p.grad, g)


def by_autograd_of_trained(critic: nn.Module, real: Tensor, fake: Tensor) -> list[Any]:
    trained = [p for p in critic.parameters() if p.requires_grad]
    total = discriminator_loss("hinge", critic(real)[:, 0], critic(fake)[:, 0])
    total = total + gradient_penalty(critic, real, fake, penalty="r1")
    return list(zip(trained, torch.autograd.grad(total, trained), strict=True))


def test_interval_and_loss_scale() -> None:
    critic, (real, fake) = critics.make("silu"), batch()
    expected = by_step(critic, real, fake, "hinge", "r1", weight=8.0)
    expected = {key: g.clone() for key, g in expected.items()}
    found = by_step(critic, real, fake, "hinge", "r1", weight=2.0, interval=4, loss_scale=16.0)
    for key, p in critic.named_parameters():
        torch.testing.assert_close(p.grad, 16 * expected[key], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["penalty"], expected["penalty"])


@pytest.mark.parametrize("name", ["leaky relu", "residual, softplus", "instance norm"])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 2.0**12)])
def test_autocast(name: str, dtype: torch.dtype, scale: float) -> None:
    """No further from float64 than three times autograd in the same precision, which keeps the
    gradient of the penalty in half precision too; plus a few roundings of it."""
    critic, (real, fake) = critics.make(name), batch()
    exact = by_autograd(critic, real, fake, "non-saturating", "r1")
    single, args = critics.make(name, torch.float32), (real.float(), fake.float())
    with torch.autocast("cpu", dtype=dtype):
        found = by_step(single, *args, "non-saturating", "r1", loss_scale=scale)
        own = by_autograd(critics.make(name, torch.float32), *args, "non-saturating", "r1")
    for key in exact:
        if key not in ("loss", "penalty"):
            assert found[key].dtype == torch.float32
            found[key] = found[key] / scale
    theirs = errors(own, exact)
    for key, error in errors(found, exact).items():
        assert error <= 3 * theirs[key] + 8 * torch.finfo(dtype).eps, key
    assert found["loss"].dtype == found["penalty"].dtype == torch.float32


def test_grad_scaler_skips_an_overflow() -> None:
    critic, (real, fake) = critics.make("leaky relu", torch.float32), batch(torch.float32)
    before = [p.detach().clone() for p in critic.parameters()]
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    scaler.scale(torch.zeros(()))  # where the scaler comes to life
    for moves in (False, True):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            critic_step(
                critic, real, fake, loss="hinge", penalty="r1", loss_scale=scaler.get_scale()
            )
        scaler.step(optimizer)
        scaler.update(2.0**10)
        moved = any((p != b).any() for p, b in zip(critic.parameters(), before, strict=True))
        assert moved == moves


def test_what_is_not_finite_is_reported_and_skipped() -> None:
    critic, (real, fake) = critics.make("leaky relu"), batch()
    real[0, 0, 0, 0] = math.nan
    step = critic_step(critic, real, fake, loss="hinge", penalty="r1")
    assert not step.finite
    assert step.loss.isnan()
    critic.zero_grad()
    with pytest.warns(UserWarning, match="not finite .*step skipped"):
        step = critic_step(critic, real, fake, loss="hinge", penalty="r1", skip_nonfinite=True)
    assert not step.finite
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_gradient_that_is_not_finite(bad: float) -> None:
    """Behind losses that are."""
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    gradients = [(p, torch.tensor([1.0, bad])), (q, torch.ones(3))]
    with pytest.warns(UserWarning, match="not finite"):
        assert not add_gradients(gradients, torch.zeros(2), True)
    assert p.grad is None
    assert q.grad is None
