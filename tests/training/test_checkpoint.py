"""Files that are whole or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyfastgan.training import CheckpointError, load_weights
from pyfastgan.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from pyfastgan.training.files import atomic

KEYS = ("model", "config", "step", "networks", "average", "optimizers", "sampler", "losses")


def state() -> dict[str, Any]:
    values: dict[str, Any] = {key: {} for key in (*KEYS, "precision", "rng")}
    return {**values, "step": 3, "networks": {"net": {"weight": torch.arange(50_000.0)}}}


def test_a_checkpoint_is_read_back_the_same(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "deep" / "last.ckpt", state())
    read = load_checkpoint(tmp_path / "deep" / "last.ckpt")
    assert read["step"] == 3
    assert torch.equal(read["networks"]["net"]["weight"], torch.arange(50_000.0))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, state())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"last\.ckpt, it is damaged or only half written"):
        load_checkpoint(path)


def test_one_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    # torch.load returns the changed weights without a word.
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, state())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    changed = torch.load(path, weights_only=True)["networks"]["net"]["weight"]
    assert not torch.equal(changed, torch.arange(50_000.0)), "the flip must hit the tensor"
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        load_checkpoint(path)


class Explosive:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_no_code_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**state(), "format": 1, "rng": Explosive()}, "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        load_checkpoint(Path("last.ckpt"))
    assert not Path("exploded").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match=r"list\.ckpt is not a pyfastgan checkpoint"):
        load_checkpoint(tmp_path / "list.ckpt")
    torch.save({**state(), "format": 99}, tmp_path / "new.ckpt")
    with pytest.raises(CheckpointError, match=r"new\.ckpt has format 99"):
        load_checkpoint(tmp_path / "new.ckpt")


def test_an_error_while_writing_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_half_way()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_weights_keep_values_and_names_and_tied_tensors(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    save_weights(tmp_path / "w.safetensors", {"net": net}, {"model": "x"})
    other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    load_weights(tmp_path / "w.safetensors", {"net": other})
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"net": nn.Linear(2, 2)}, {})
    with pytest.raises(CheckpointError, match=r"w\.safetensors, network 'net', .*weight"):
        load_weights(path, {"net": nn.Linear(3, 2)})
    with pytest.raises(CheckpointError, match=r"hold the networks \['net'\], expected \['other'\]"):
        load_weights(path, {"other": nn.Linear(2, 2)})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*w\.safetensors"):
        load_weights(path, {"net": nn.Linear(2, 2)})
