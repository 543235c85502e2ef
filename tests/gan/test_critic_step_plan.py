"""How `critic_step` takes a critic apart: its passes counted, what it leaves to autograd, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import critics
import pytest
import torch
from critic_steps import COUNT, batch, by_autograd
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyfastgan as pf
from pyfastgan.gan import critic_step
from pyfastgan.ops.edge_conv import _CPU_KERNELS


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


def test_bad_conditions() -> None:
    critic, (real, fake) = critics.make("projection"), batch()
    with pytest.raises(ValueError, match=r"condition must be of one length .*got shape \(3,\)"):
        critic_step(critic, real, fake, loss="hinge", condition=torch.arange(3))
    with pytest.raises(TypeError, match="condition must be a tensor or None, got list"):
        critic_step(critic, real, fake, loss="hinge", condition=[1, 2, 3, 4])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"loss": "hinje"}, ValueError, "loss .*did you mean 'hinge'"),
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
