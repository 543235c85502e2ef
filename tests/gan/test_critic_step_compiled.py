"""`critic_step` compiled, in one graph, is `critic_step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import critics
import pytest
import torch
from critic_steps import COUNT, batch, by_step
from critics import COMBINATIONS, CRITICS
from torch import Tensor

from pyfastgan.gan import critic_step, discriminator_loss

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
