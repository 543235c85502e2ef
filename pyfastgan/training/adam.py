"""torch's fused Adam without most of what a step costs beside the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """`torch.optim.Adam(params, lr, betas, fused=True)`: the same kernel, numbers and state.

    For a network of a few small layers the kernel takes a quarter of torch's step, and the rest gathers
    and sorts what the step before did, too. That is kept here, until other state is loaded.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(params, lr, betas, fused=True)
        self._kept: tuple[list[Tensor], list[Tensor], list[Tensor], Tensor] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._kept = None  # of the state before

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step on the gradients that are there.

        By torch itself where it is not like the last one: the first, one with a closure or under a
        `GradScaler`, on a GPU, with several groups or types, or without all gradients.
        """
        group = self.param_groups[0]
        params = group["params"]
        kept = self._kept
        grads = [p.grad for p in params]
        if kept is None or len(kept[0]) != len(grads) or not self._usual(closure, grads):
            found = super().step(closure)
            self._kept = self._gathered(params)
            return found
        averages, squares, steps, count = kept
        with torch.no_grad():
            count.add_(1)
            torch._fused_adam_(
                params,
                grads,
                averages,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
            )
        return None

    def _usual(self, closure: Any, grads: list[Tensor | None]) -> bool:
        scaled = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        return closure is None and scaled == (None, None) and not any(g is None for g in grads)

    def _gathered(
        self, params: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor] | None:
        """The state of all parameters by kind, and the memory of all their steps together; nothing
        where a step needs more than that."""
        states: list[dict[str, Any]] = [self.state.get(p) or {} for p in params]
        alike = len({(p.dtype, p.device) for p in params}) == 1 == len(self.param_groups)
        if not alike or not all(states) or params[0].device.type != "cpu":
            return None
        count = torch.stack([state["step"] for state in states])
        for state, step in zip(states, count.unbind(), strict=True):
            state["step"] = step
        averages, squares, steps = (
            [state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")
        )
        return averages, squares, steps, count
