"""Where a run computes, by Lightning Fabric, and how a step reaches its network there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch import nn

from pyfastgan.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_fabric(config: TrainConfig) -> Fabric:
    """The devices of a configuration, or of torchrun.

    Raises:
        ValueError: They are not there, do not agree with torchrun, or cannot compute in that precision.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    from pyfastgan.training.ranks import GradientAverage

    devices, nodes = config.devices, 1
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun says how many processes there are
        here, everywhere = (int(os.environ[f"{name}WORLD_SIZE"]) for name in ("LOCAL_", ""))
        if devices not in (1, here):
            raise ValueError(f"devices must be 1 or torchrun's {here} processes, got {devices}")
        if config.batch_size % everywhere:
            raise ValueError(
                f"batch_size must be a multiple of torchrun's {everywhere} processes,"
                f" got {config.batch_size}"
            )
        devices, nodes = here, everywhere // here
    try:
        return Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=config.precision,  # type: ignore[arg-type]
            strategy=GradientAverage() if devices * nodes > 1 else "auto",
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot train on accelerator={config.accelerator!r}, devices={config.devices},"
            f" precision={config.precision!r}: {reason}"
        ) from None


def direct(fabric: Fabric, network: nn.Module) -> nn.Module:
    """What a step calls: the module itself where Fabric's wrapper around it does nothing.

    In 32-true the wrapper looks for tensors in what goes in and comes out, and hooks a function to these that
    does nothing: a tenth of a step of small layers.
    """
    from lightning_fabric.plugins import Precision

    plain = type(fabric.strategy.precision) is Precision
    inner: nn.Module = getattr(network, "module", network) if plain else network
    return inner
