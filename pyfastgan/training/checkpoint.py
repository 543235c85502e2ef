"""Checkpoints and weights on disk: written whole, checked when read, never unpickled to code."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from pyfastgan.training.files import atomic

FORMAT = 1
_KEYS = frozenset(
    {"format", "model", "config", "step", "networks", "average", "optimizers", "sampler"}
    | {"losses", "precision", "rng"}
)


class CheckpointError(ValueError):
    """A checkpoint or a weight file that cannot be used; the message names the file."""


def _cannot_write(path: Path, error: Exception) -> OSError:
    """torch and safetensors say of a full disk only that a position is not what they expected."""
    free = shutil.disk_usage(path.parent).free / 2**20
    reason = str(error).strip().splitlines()[0]
    return OSError(
        f"cannot write {path}, what it held before is untouched: {reason} ({free:.0f} MiB are free on its disk)"
    )


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run, tensors and plain values only, atomically and with checksums.

    Raises:
        OSError: It could not be written: a full disk, a folder without permission.
    """
    with atomic(path) as temporary:
        try:
            torch.save({"format": FORMAT, **state}, temporary)
        except (OSError, RuntimeError) as error:
            raise _cannot_write(path, error) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    torch reads an archive without looking at its checksums, so they are verified first.

    Raises:
        CheckpointError: No such file, not a checkpoint, damaged, cut short, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"the checkpoint {path} is damaged (part {damaged!r})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"cannot read the checkpoint {path}, it is damaged or only half written ({reason})"
        ) from None
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise CheckpointError(f"{path} is not a pyfastgan checkpoint")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} has format {state['format']}, this version reads {FORMAT}"
        )
    return state


def load_state(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """`module.load_state_dict(state)`, with an error that says what was loaded and what differs.

    Raises:
        CheckpointError: Missing, unexpected or differently shaped tensors.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{what} does not fit: {reason}") from None


def save_weights(path: Path, networks: Mapping[str, nn.Module], metadata: dict[str, str]) -> None:
    """Write the networks' tensors as safetensors under the keys `network.parameter`, atomically.

    Raises:
        OSError: They could not be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        # Cloned since safetensors refuses tensors that share memory (tied weights).
        f"{name}.{key}": value.detach().cpu().clone().contiguous()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    with atomic(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise _cannot_write(path, error) from error


def load_weights(path: str | Path, networks: Mapping[str, nn.Module]) -> None:
    """Load a weight file into networks of the same names, strictly.

    Raises:
        CheckpointError: An unreadable file, or tensors that do not fit; the message names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the weights {path}: {error}") from None
    found = {key.split(".", 1)[0] for key in tensors}
    if found != networks.keys():
        raise CheckpointError(
            f"the weights {path} hold the networks {sorted(found)}, expected {sorted(networks)}"
        )
    for name, network in networks.items():
        prefix = f"{name}."
        state = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        load_state(network, state, f"{path}, network {name!r},")
