"""`critic_step` against autograd's double backward, its passes counted, compiled, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import critics
import pytest
import torch
from critics import COMBINATIONS, CRITICS, SHAPE, VARIATIONAL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyfastgan as pf
from pyfastgan.gan import critic_step, discriminator_loss, gradient_penalty, passes
from pyfastgan.gan.critic_step import add_gradients
from pyfastgan.gan.objectives import sample_scores
from pyfastgan.ops.edge_conv import _CPU_KERNELS

COUNT = 4


def batch(dtype: torch.dtype = torch.float64, *, last: bool = False, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, COUNT, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    form = torch.channels_last if last else torch.contiguous_format
    return [x.contiguous(memory_format=form) for x in pair]


def by_autograd(
    critic: nn.Module, real: Tensor, fake: Tensor, loss: str, penalty: str | None, **more: Any
) -> dict[str, Tensor]:
    """The gradients by name, and the losses under "loss" and "penalty"."""
    condition = more.pop("condition", None)

    def judge(x: Tensor) -> Tensor:
        return sample_scores(critic(x) if condition is None else critic(x, condition), len(x))

    found = {"loss": discriminator_loss(loss, judge(real), judge(fake))}
    total = found["loss"]
    if penalty is not None:
        found["penalty"] = gradient_penalty(
            critic, real, fake, penalty=penalty, condition=condition, **more
        )
        total = total + found["penalty"]
    names, weights = zip(*critic.named_parameters(), strict=True)
    grads = torch.autograd.grad(total, weights, allow_unused=True)
    return found | {n: g for n, g in zip(names, grads, strict=True) if g is not None}


def by_step(critic: nn.Module, *args: Any, **more: Any) -> dict[str, Tensor]:
    critic.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = critic_step(critic, *args[:2], loss=args[2], penalty=args[3], **more)
    assert step.plan == "fused"
    assert bool(step.finite)
    found = {"loss": step.adversarial, "penalty": step.penalty}
    return found | {n: p.grad for n, p in critic.named_parameters() if p.grad is not None}


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


@pytest.mark.skipif(not _CPU_KERNELS, reason="torch's convolution serves where nothing is compiled")
def test_edges_are_served_by_their_kernels() -> None:
    critic, (real, fake) = critics.edges(), batch(torch.float32)
    called: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.append(func.name())
            return func(*args, **(kwargs or {}))

    critic_step(critic, real, fake, loss="hinge")
    with Calls():
        critic_step(critic, real, fake, loss="hinge", penalty="r1")
    ops = ("edge_conv", "edge_conv_transpose", "edge_conv_weight")
    counts = [called.count(f"pyfastgan::{op}") for op in ops]
    # Of two convolutions a forward pass, one of tangents and a data gradient, and of two transposed ones.
    assert counts == [2 * 2 + 2, 2 * 2 + 2, 4]
    assert not [name for name in called if "convolution" in name]


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


class Passes(TorchDispatchMode):
    """Counts the passes through the one layer of 3 x 3, in batches of COUNT."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.name():
            back = "backward" in func.name()
            weight = args[2] if back else args[1]
            if weight.shape[2:] == (3, 3):
                self.total += len(args[0]) / COUNT * (sum(args[-1][:2]) if back else 1)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("penalty", "act", "passes"),
    [
        (None, nn.LeakyReLU(0.2), 6),
        ("r1", nn.LeakyReLU(0.2), 7),
        ("r1r2", nn.LeakyReLU(0.2), 8),
        ("wgan-gp", nn.LeakyReLU(0.2), 10),
        ("r1", nn.SiLU(), 9),
        ("wgan-gp", nn.SiLU(), 12),
    ],
)
def test_convolution_passes(penalty: str | None, act: nn.Module, passes: int) -> None:
    """The table of docs/gradient-penalties.md, for a layer in the middle."""
    critic, (real, fake) = critics.plain(act).double(), batch()
    critic_step(critic, real, fake, loss="hinge")  # planning convolves shapes
    with Passes() as counter:
        critic_step(critic, real, fake, loss="non-saturating", penalty=penalty, seed=1)
    assert counter.total == passes


def test_one_weight_gradient_a_layer() -> None:
    critic, (real, fake) = critics.plain().double(), batch()
    calls: list[Any] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.convolution_backward.default:
                calls.append(tuple(args[-1]))
            return func(*args, **(kwargs or {}))

    critic_step(critic, real, fake, loss="hinge")
    with Calls():
        critic_step(critic, real, fake, loss="hinge", penalty="r1r2")
    assert calls.count((False, True, False)) == 3
    assert calls.count((True, False, False)) == 3
    assert len(calls) == 6


COMPILED = [
    ("residual", "relativistic", "r1r2"),
    ("projection, sigmoid", "wgan", "wgan-gp"),
    ("NormAct", "non-saturating", "r1"),
    ("spectral norm", "hinge", None),
    ("old hooks", "least-squares", "dragan"),
]
COMPILED += [
    (name, *COMBINATIONS[k % len(COMBINATIONS)])
    for k, name in enumerate(CRITICS)
    if name not in [row[0] for row in COMPILED]
]


def compiled_equals_eager(name: str, loss: str, penalty: str | None, backend: str) -> None:
    critic, (real, fake) = critics.make(name, torch.float32), batch(torch.float32)
    condition = critics.condition(name, COUNT)
    more = {"condition": condition, "seed": torch.tensor(5)}
    expected = by_step(critic, real, fake, loss, penalty, **more)
    critic.zero_grad()
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=backend)
    def step(real: Tensor, fake: Tensor) -> Any:
        return critic_step(critic, real, fake, loss=loss, penalty=penalty, **more)

    result = step(real, fake)
    assert result.plan == "fused"
    torch.testing.assert_close(result.adversarial, expected["loss"])
    torch.testing.assert_close(result.penalty, expected["penalty"])
    for key, p in critic.named_parameters():
        torch.testing.assert_close(p.grad, expected.get(key), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "loss", "penalty"), COMPILED)
def test_whole_step_compiles(name: str, loss: str, penalty: str | None) -> None:
    compiled_equals_eager(name, loss, penalty, "aot_eager")


@pytest.mark.parametrize(
    ("name", "loss", "penalty"),
    [
        ("leaky relu", "relativistic", "r1r2"),
        ("leaky relu", "wgan", "wgan-gp"),
        ("instance norm", "non-saturating", "r1"),
    ],
)
def test_whole_step_compiles_with_inductor(name: str, loss: str, penalty: str) -> None:
    compiled_equals_eager(name, loss, penalty, "inductor")


def test_compiled_step_adds_to_gradients() -> None:
    critic, (real, fake) = critics.plain(), batch(torch.float32)
    torch._dynamo.reset()
    step = torch.compile(
        lambda: critic_step(critic, real, fake, loss="hinge", penalty="r1"),
        fullgraph=True,
        backend="aot_eager",
    )
    step()
    once = [p.grad.clone() for p in critic.parameters()]
    step()
    for p, g in zip(critic.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


def test_the_same_by_autograd_does_not_compile() -> None:
    """The text that docs/gradient-penalties.md quotes."""
    critic, (real, fake) = critics.plain(), batch(torch.float32)

    def loss(judge: Callable[[Tensor], Tensor]) -> Tensor:
        x = real.clone().requires_grad_()
        scores = judge(x)[:, 0]
        (g,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        total = discriminator_loss("hinge", scores, judge(fake)[:, 0])
        return total + 5 * g.square().flatten(1).sum(1).mean()

    torch._dynamo.reset()
    with pytest.raises(
        Exception, match=r"autograd\.grad. with .torch\._dynamo\.config\.trace_autograd_ops=False"
    ):
        torch.compile(lambda: loss(critic), fullgraph=True, backend="aot_eager")()
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        loss(torch.compile(critic, backend="aot_eager")).backward()


@pytest.mark.parametrize(
    ("critic", "says"),
    [
        (lambda: critics.plain(norm=nn.BatchNorm2d), r"3 \(BatchNorm2d\) mixes samples"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 1, 8), nn.Dropout(0.5), nn.Flatten()),
            r"1 \(Dropout\) draws a random mask",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten(), nn.Softsign()),
            "2: softsign is not an operation",
        ),
    ],
)
def test_falls_back_and_names_the_layer(critic: Callable[[], nn.Module], says: str) -> None:
    torch.manual_seed(0)
    net, (real, fake) = critic().double(), batch()
    args: dict[str, Any] = {"loss": "non-saturating", "penalty": "r1", "seed": 1}
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=says):
        step = critic_step(net, real, fake, **args)
    assert step.plan.startswith("autograd: ")
    found = {n: p.grad for n, p in net.named_parameters()}
    torch.manual_seed(1)
    exact = by_autograd(net, real, fake, "non-saturating", "r1", seed=1)
    for key, g in found.items():
        torch.testing.assert_close(g, exact[key])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        critic_step(net, real, fake, **args)  # once is enough


class Strange(nn.Module):
    """Something that the fused passes must not take for what it is not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 3, 3, padding=1)
        if kind == "hook":
            self.conv.register_forward_hook(lambda *a: None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.kind == "batch mean":
            h = h - h.mean(0, keepdim=True)
        elif self.kind == "as a batch of rows":
            h = h.reshape(3, -1, 8, 8).sum((1, 2, 3)).sum() + h
        elif self.kind == "values decide":
            h = h if h.sum() > 0 else -h
        elif self.kind == "in place on a view":
            flat = h.flatten(1)
            h += 1.0
            return flat.mean(1)
        elif self.kind == "batch in a shape":
            h = h * len(x)
        return h.flatten(1).mean(1)


@pytest.mark.parametrize(
    "kind",
    [
        "hook",
        "batch mean",
        "as a batch of rows",
        "values decide",
        "in place on a view",
        "batch in a shape",
    ],
)
def test_is_not_deceived(kind: str) -> None:
    critic, (real, fake) = Strange(kind).double(), batch()
    with pytest.warns(UserWarning, match="differentiated by autograd"):
        step = critic_step(critic, real, fake, loss="hinge")
    assert step.plan.startswith("autograd")


def test_the_plan_follows_the_structure() -> None:
    critic, (real, fake) = critics.plain(norm=nn.BatchNorm2d).eval(), batch(torch.float32)
    args: dict[str, Any] = {"loss": "hinge", "penalty": "r1"}
    assert critic_step(critic, real, fake, **args).plan == "fused"
    with pytest.warns(UserWarning, match="BatchNorm2d"):
        assert "BatchNorm2d" in critic_step(critic.train(), real, fake, **args).plan
    critic[3] = nn.Identity()
    assert critic_step(critic, real, fake, **args).plan == "fused"
    for twin in (copy.deepcopy(critic), pickle.loads(pickle.dumps(critic))):
        assert critic_step(twin, real, fake, **args).plan == "fused"
        assert twin[0].weight.grad is not critic[0].weight.grad
    assert all("plan" not in key for key in critic.state_dict())


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


def test_bad_conditions() -> None:
    critic, (real, fake) = critics.make("projection"), batch()
    with pytest.raises(ValueError, match=r"condition must be of one length .*got shape \(3,\)"):
        critic_step(critic, real, fake, loss="hinge", condition=torch.arange(3))
    with pytest.raises(TypeError, match="condition must be a tensor or None, got list"):
        critic_step(critic, real, fake, loss="hinge", condition=[1, 2, 3, 4])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"loss": "hinje"}, ValueError, "did you mean 'hinge'"),
        ({"penalty": "wgangp"}, ValueError, "did you mean 'wgan-gp'"),
        ({"weight": -1.0}, ValueError, "weight must be finite and at least 0, got -1.0"),
        ({"interval": 0}, ValueError, "interval must be at least 1"),
        ({"fake": torch.zeros(4, 3, 8, 9)}, ValueError, "real and fake must be of one shape"),
        (
            {"real": torch.zeros(4, 3, 8, 8, dtype=torch.int64)},
            TypeError,
            "real must be a floating",
        ),
        ({"critic": lambda x: x}, TypeError, "critic must be a torch.nn.Module, got function"),
        ({"critic": critics.plain().requires_grad_(False)}, ValueError, "frozen"),
        (
            {"critic": nn.Sequential(nn.Flatten(), nn.Linear(192, 2))},
            ValueError,
            r"output must be of shape \(4,\), \(4, 1\)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:the critic is differentiated by autograd")
def test_bad_input(change: dict[str, Any], error: type[Exception], says: str) -> None:
    real, fake = batch(torch.float32)
    call: dict[str, Any] = {"critic": critics.plain(), "real": real, "fake": fake, "loss": "hinge"}
    call |= {"penalty": "r1"} | change
    with pytest.raises(error, match=says):
        pf.gan.critic_step(call.pop("critic"), call.pop("real"), call.pop("fake"), **call)
