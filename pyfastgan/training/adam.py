"""torch's fused Adam without most of what a step costs beside the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfastgan._layout import dense_like


class _Kept(NamedTuple):
    """What a step gathers, of the parameters that have a gradient."""

    params: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    together: Tensor  # the memory of all steps


class Adam(torch.optim.Adam):
    """`torch.optim.Adam(params, lr, betas, eps, fused=True)`: the same kernel, numbers and state.

    For a network of a few small layers the kernel takes a quarter of torch's step, and the rest gathers
    and sorts what the step before did, too. That is kept here, until other state is loaded. On a CPU
    the kernel goes over memory as it lies, and copies every gradient that is not contiguous without
    reading the copy; so it is given flat views, of gradients that lie as their parameters do.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr, betas, eps, fused=True)
        self._kept: _Kept | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._kept = None  # of the state before

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, without its hooks and its look for what can be set to zero together."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step on the gradients that are there.

        By torch itself where it is not like the last one: the first, one with a closure or under a
        `GradScaler`, on a GPU, with several groups or types, or on the gradients of other parameters.
        """
        group = self.param_groups[0]
        params = [p for p in group["params"] if p.grad is not None]
        kept = self._kept
        if kept is None or not self._usual(closure, params, kept):
            found = super().step(closure)
            self._kept = self._gathered([p for p in group["params"] if p.grad is not None])
            return found
        with torch.no_grad():
            kept.together.add_(1)
            torch._fused_adam_(
                [_flat(p) for p in params],
                [_flat(dense_like(p.grad, p)) for p in params],
                kept.averages,
                kept.squares,
                [],
                kept.steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
            )
        return None

    def _usual(self, closure: Any, params: list[Tensor], kept: _Kept) -> bool:
        scaled = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if closure is not None or scaled != (None, None) or len(params) != len(kept.params):
            return False
        return all(p is q for p, q in zip(params, kept.params, strict=True))

    def _gathered(self, params: list[Tensor]) -> _Kept | None:
        """The state of these parameters by kind; nothing where a step needs more than that."""
        states: list[dict[str, Any]] = [self.state.get(p) or {} for p in params]
        alike = len({(p.dtype, p.device) for p in params}) == 1 == len(self.param_groups)
        if not alike or not all(states) or params[0].device.type != "cpu":
            return None
        count = torch.stack([state["step"] for state in states])
        for state, step in zip(states, count.unbind(), strict=True):
            state["step"] = step
        averages, squares = (
            [_flat(state[key]) for state in states] for key in ("exp_avg", "exp_avg_sq")
        )
        return _Kept(params, averages, squares, [state["step"] for state in states], count)


def _flat(x: Tensor) -> Tensor:
    """The numbers of a dense tensor as they lie in memory; a contiguous one is left as it is."""
    return x if x.is_contiguous() else x.as_strided((x.numel(),), (1,))
