"""Several processes, one device each."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer


class GradientAverage(DDPStrategy):
    """Starts the processes as DDP does, but averages the gradients when an optimizer steps.

    DDP's hooks know only gradients that its own backward made, each parameter once. A frozen
    discriminator, two backwards in a step, a gradient penalty or a step that writes `.grad` itself
    would hang it or go unsynchronised. Whatever lies in `.grad` when `step` is called is averaged
    here, so none of these is special. It happens before the loss scale is removed: an overflow on
    one rank makes every rank skip the step.
    """

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """Give every rank the tensors of rank 0; the module is not wrapped."""
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
        return module

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        """Average the gradients over the ranks, then step."""
        average_gradients(optimizer)
        return super().optimizer_step(optimizer, **kwargs)


def average_gradients(optimizer: Optimizer) -> None:
    """Replace an optimizer's gradients by their means over the ranks, one reduction a dtype."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                key = (parameter.grad.dtype, parameter.grad.device)
                by_kind.setdefault(key, []).append(parameter.grad)
    for gradients in by_kind.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
