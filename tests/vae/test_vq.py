"""VQ-VAE: its map of codes, the files that a prior reads, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.nn import VectorQuantizer
from pyfastgan.vae import VQVAE, VQConfig, VQSystem

TINY = {
    "batch_size": 16,
    "width": 8,
    "codes": 16,
    "code_width": 4,
    "accelerator": "cpu",
    "log_every": 5,
    "sample_every": 0,
    "checkpoint_every": 100,
    "sample_count": 4,
}
FABRIC = SimpleNamespace(global_rank=0, world_size=1, backward=lambda loss: loss.backward())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def model(**changes) -> VQVAE:
    options = {"width": 6, "halvings": 2, "residual_blocks": 1, **changes}
    return VQVAE((3, 16, 24), VectorQuantizer(8, 4), **options)


def test_codes_are_the_nearest_to_what_the_encoder_says() -> None:
    vq, images = model().eval(), torch.rand(5, 3, 16, 24) * 2 - 1
    codes = vq.encode(images)
    assert codes.shape == (5, 4, 6) == (5, *vq.map_shape)
    said = vq.encoder(images).movedim(1, -1).flatten(0, -2)
    nearest = torch.cdist(said.double(), vq.quantizer.codebook.double()).argmin(1)
    assert torch.equal(codes.flatten(), nearest)
    torch.testing.assert_close(vq.decode(codes), vq(images).images.clamp(-1, 1))
    assert vq.decode(codes[:0]).shape == (0, 3, 16, 24)


def test_evaluation_leaves_the_codebook() -> None:
    vq, images = model().eval(), torch.rand(5, 3, 16, 24) * 2 - 1
    before = vq.quantizer.codebook.clone()
    vq.encode(images)
    assert torch.equal(before, vq.quantizer.codebook)
    vq.train()(images)
    assert not torch.equal(before, vq.quantizer.codebook)


def test_samples_have_the_codes_in_their_frequencies() -> None:
    vq, drawn = model(), []
    vq.quantizer.counts.copy_(torch.tensor([0.0, 3, 0, 5, 0, 0, 2, 0]))
    vq.decode = lambda codes: drawn.append(codes) or torch.zeros(1)
    vq.sample(2000, 1)
    vq.sample(3, 1)
    shares = torch.bincount(drawn[0].flatten(), minlength=8) / drawn[0].numel()
    assert (shares - vq.quantizer.counts / 10).abs().max() < 0.01
    assert not shares[vq.quantizer.counts == 0].any()
    assert torch.equal(drawn[0][:3], drawn[1])


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_a_step_descends_the_loss_written_out(codebook: str) -> None:
    config = VQConfig(**{**TINY, "image_size": 8, "channels": 1, "codebook": codebook})
    images = torch.rand(16, 1, 8, 8) * 2 - 1
    system = VQSystem(config, pf.data.load(images), None)
    net = system.networks["model"]
    with torch.no_grad():
        said = net.encoder(images).movedim(1, -1).flatten(0, -2)
        distance = torch.cdist(said, net.quantizer.codebook).min(1).values.square().mean() / 4
    before = [parameter.detach().clone() for parameter in net.parameters()]
    losses = system.training_step(FABRIC, (images,), 1)
    expected = losses["mse"] / images.var() + (0.25 if codebook == "ema" else 1.25) * distance
    torch.testing.assert_close(losses["loss"], expected)
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_digits_end_to_end(tmp_path: Path, capsys) -> None:
    """Trained from the command line; the files hold the codes, which decode to the reconstructions."""
    out = tmp_path / "run"
    options = {**TINY, "steps": 150, "width": 16, "learning_rate": 3e-3, "batch_size": 64}
    words = [f"--{key}={value}" for key, value in options.items()]
    assert cli.main(["train", "vq-vae", "--data", "digits", "--out", str(out), *words]) == 0
    assert "the test split: images 597, mse" in capsys.readouterr().out
    assert cli.main(["sample", str(out), "--count", "4"]) == 0
    with safe_open(out / "codes.safetensors", "pt") as file:
        assert file.metadata() == {"codes": "16"}
        names = ("train", "test", "labels_train", "labels_test")
        assert sorted(file.keys()) == sorted(names)
        train, test, labels, _ = (file.get_tensor(name) for name in names)
    assert train.shape == (1200, 4, 4)
    assert test.shape == (597, 4, 4)
    assert train.dtype == labels.dtype == torch.int64
    data = pf.data.load("digits:train").tensors
    assert torch.equal(labels, data[1])
    vq = pf.vae.load(out)
    assert (vq.encode(data[0]) == train).float().mean() > 0.999
    images = pf.data.load("digits:test").tensors[0]
    error = (pf.vae.decode(out, test) - images).square().mean().item()
    found = json.loads((out / "test.json").read_text())
    assert math.isclose(found["mse"], error, rel_tol=1e-4)
    assert error < 0.5 * images.var(0).mean()
    assert found["used"] == len(test.unique())


def test_a_stopped_and_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    def train(out: str, steps: int, **more) -> Path:
        options = {**TINY, "restart_below": 0.5, "ema_decay": 0.0, "image_size": 8}
        return pf.vae.train(
            "vq-vae", data="digits", out=tmp_path / out, steps=steps, **options, **more
        ).path

    whole, parts = train("whole", 20), train("parts", 10)
    torch.manual_seed(9)
    train("parts", 20, resume=True)
    for name in ("codes.safetensors", "weights.safetensors", "test.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    # The file of a run says which model it is of.
    again = pf.vae.train(whole / "config.yaml", out=tmp_path / "again", steps=2)
    assert again.name == "vq-vae"


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"multiple of 2\^halvings = 16"):
        model(halvings=4)
    with pytest.raises(ValueError, match="width must be at least 1"):
        model(width=0)
    with pytest.raises(ValueError, match=r"images must be of shape \(N, 3, 16, 24\)"):
        model()(torch.zeros(2, 1, 16, 24))
    for bad in (
        torch.linspace(0, 255, 1152).view(1, 3, 16, 24),
        torch.full((1, 3, 16, 24), math.nan),
    ):
        with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], got (0 to 255|nan)"):
            model()(bad)
    with pytest.raises(ValueError, match=r"codes must be of shape \(N, 4, 6\)"):
        model().decode(torch.zeros(2, 6, 4).long())
    with pytest.raises(TypeError, match="codes must be int64"):
        model().decode(torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match=r"index must lie in \[0, 8\)"):
        model().decode(torch.full((2, 4, 6), 8))
    for name, value in (("codes", 1), ("codes", 0), ("code_width", 0), ("commitment", -1.0)):
        with pytest.raises(ValueError, match=name):
            VQConfig(**{name: value})
    out = tmp_path / "vae"
    options = {**TINY, "steps": 1, "test_samples": 1}
    pf.vae.train("vae", out=out, **{k: v for k, v in options.items() if "code" not in k})
    with pytest.raises(ValueError, match="run must be one of a model with codes"):
        pf.vae.decode(out, torch.zeros(1, 2, 2).long())
