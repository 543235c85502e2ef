"""VQ-VAE-2: which level sees what, the files that a prior over both reads, new images end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.nn import VectorQuantizer
from pyfastgan.vae import VQVAE2, VQConfig, VQSystem

TINY = {
    "batch_size": 16,
    "width": 8,
    "codes": 16,
    "code_width": 4,
    "accelerator": "cpu",
    "log_every": 5,
    "sample_every": 0,
    "sample_count": 4,
}
FABRIC = SimpleNamespace(global_rank=0, world_size=1, backward=lambda loss: loss.backward())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def model(**changes) -> VQVAE2:
    options = {"width": 6, "halvings": 1, "residual_blocks": 1, **changes}
    return VQVAE2((3, 16, 24), VectorQuantizer(8, 4), VectorQuantizer(9, 4), **options)


def test_codes_of_both_levels() -> None:
    """The top code is the nearest to what the top encoder says; the bottom one knows the top's."""
    vq, images = model().eval(), torch.rand(5, 3, 16, 24) * 2 - 1
    top, bottom = vq.encode(images)
    assert top.shape == (5, 4, 6)
    assert bottom.shape == (5, 8, 12)
    assert vq.map_shapes == ((4, 6), (8, 12))
    seen = vq.encoder(images)

    def nearest(said: torch.Tensor, quantizer: VectorQuantizer) -> torch.Tensor:
        rows = said.movedim(1, -1).flatten(0, -2).double()
        return torch.cdist(rows, quantizer.codebook.double()).argmin(1)

    assert torch.equal(top.flatten(), nearest(vq.top_encoder(seen), vq.top))
    told = vq.top_decoder(vq.top.lookup(top))
    said = vq.bottom_encoder(torch.cat((told, seen), 1))
    assert torch.equal(bottom.flatten(), nearest(said, vq.bottom))
    made = vq(images)
    torch.testing.assert_close(vq.decode((top, bottom)), made.images.clamp(-1, 1))
    assert vq.decode((top[:0], bottom[:0])).shape == (0, 3, 16, 24)
    # Both levels reach the picture.
    for changed in (((top + 1) % 8, bottom), (top, (bottom + 1) % 9)):
        assert (vq.decode(changed) - vq.decode((top, bottom))).abs().max() > 1e-4


def test_the_gradient_reaches_every_weight_and_training_moves_both_codebooks() -> None:
    config = VQConfig(**{**TINY, "image_size": 16, "channels": 3, "levels": 2})
    images = torch.rand(16, 3, 16, 16) * 2 - 1
    system = VQSystem(config, pf.data.load(images), None)
    net = system.networks["model"]
    assert isinstance(net, VQVAE2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses = system.training_step(FABRIC, (images,), 1)
    assert set(losses) == {"loss", "mse", "perplexity_top", "perplexity_bottom"}
    after = net.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still, still
    # The same loss, written out.
    net.load_state_dict(before)
    found = net(images)
    commitment = 0.0
    seen = net.encoder(images)
    net.load_state_dict(before)
    said = net.top_encoder(seen)
    net.train(False)
    top = net.top(said)
    commitment = 0.25 * (said - net.top.lookup(top.indices)).square().mean()
    said = net.bottom_encoder(torch.cat((net.top_decoder(top.quantized), seen), 1))
    bottom = net.bottom(said)
    commitment = commitment + 0.25 * (said - net.bottom.lookup(bottom.indices)).square().mean()
    torch.testing.assert_close(found.loss, commitment)
    expected = losses["mse"] / images.var() + commitment.detach()
    torch.testing.assert_close(losses["loss"], expected)


def test_samples_have_the_codes_in_their_frequencies() -> None:
    vq, drawn = model(), []
    vq.top.counts.copy_(torch.tensor([0.0, 3, 0, 5, 0, 0, 2, 0]))
    vq.bottom.counts.copy_(torch.arange(9.0))
    vq.decode = lambda codes: drawn.append(codes) or torch.zeros(1)
    vq.sample(2000, 1)
    vq.sample(3, 1)
    for level, quantizer in enumerate((vq.top, vq.bottom)):
        size = len(quantizer.counts)
        share = torch.bincount(drawn[0][level].flatten(), minlength=size) / drawn[0][level].numel()
        assert (share - quantizer.counts / quantizer.counts.sum()).abs().max() < 0.01
        assert torch.equal(drawn[0][level][:3], drawn[1][level])


def test_from_images_to_new_images(tmp_path: Path, capsys) -> None:
    """The command line: a quantiser, a prior over both maps of codes, pictures drawn from it."""
    out, prior = tmp_path / "vq", tmp_path / "prior"
    small = [f"--{key}={value}" for key, value in TINY.items()]
    words = ["train", "vq-vae-2", "--data", "digits", "--out", str(out), "--steps", "60"]
    assert cli.main([*words, "--learning_rate", "3e-3", *small]) == 0
    assert "used_top" in capsys.readouterr().out
    with safe_open(out / "codes.safetensors", "pt") as file:
        assert file.metadata() == {"codes": "16"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found["train"].shape == (1200, 4, 4)
    assert found["train_top"].shape == (1200, 2, 2)
    assert found["test_top"].shape == (597, 2, 2)
    assert found["labels_test"].shape == (597,)
    images = pf.data.load("digits:test").tensors[0]
    made = pf.vae.decode(out, (found["test_top"], found["test"]))
    record = json.loads((out / "test.json").read_text())
    assert abs(record["mse"] - (made - images).square().mean().item()) < 1e-4
    assert record["used_bottom"] == len(found["test"].unique())
    assert record["used_top"] == len(found["test_top"].unique())
    assert cli.main(["sample", str(out), "--count", "4"]) == 0

    options = ["--layers=2", "--width=8", "--steps=30", "--batch_size=64", "--sample_every=0"]
    words = ["train", "pixelcnn", "--codes", str(out), "--out", str(prior), *options]
    assert cli.main([*words, "--accelerator=cpu"]) == 0
    assert "the test split: images 597, nll" in capsys.readouterr().out
    record = json.loads((prior / "test.json").read_text())
    assert record["bits_per_dim"] < 4, "fewer than log2(16)"
    assert cli.main(["sample", str(prior), "--count", "4", "--out", str(tmp_path / "new.png")]) == 0
    decode = lambda codes: pf.vae.decode(out, codes)  # noqa: E731
    drawn = pf.autoregressive.load(prior, decode=decode).sample(4, 0)
    assert drawn.shape == (4, 1, 8, 8)


def test_a_run_names_its_preset(tmp_path: Path) -> None:
    config = VQConfig(**{**TINY, "levels": 2, "steps": 1, "ema_decay": 0.0})
    run = pf.vae.train(config, data="digits", out=tmp_path / "run")
    assert run.name == "vq-vae-2"
    assert isinstance(pf.vae.load(run), VQVAE2)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"multiple of 2\^halvings = 16"):
        model(halvings=3)
    with pytest.raises(ValueError, match="bottom must have codes as wide as top's, 4, got 5"):
        VQVAE2((1, 8, 8), VectorQuantizer(8, 4), VectorQuantizer(8, 5), halvings=1)
    vq, top, bottom = model(), torch.zeros(2, 4, 6).long(), torch.zeros(2, 8, 12).long()
    with pytest.raises(ValueError, match=r"images must be of shape \(N, 3, 16, 24\)"):
        vq(torch.zeros(2, 1, 16, 24))
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], got 0 to 255"):
        vq.encode(torch.linspace(0, 255, 1152).view(1, 3, 16, 24))
    with pytest.raises(TypeError, match="codes must be a pair"):
        vq.decode(bottom)
    with pytest.raises(ValueError, match=r"top codes must be of shape \(N, 4, 6\)"):
        vq.decode((bottom, top))
    with pytest.raises(TypeError, match="bottom codes must be int64"):
        vq.decode((top, bottom.float()))
    with pytest.raises(ValueError, match="as many images on both levels, got 1 and 2"):
        vq.decode((top[:1], bottom))
    with pytest.raises(ValueError, match=r"index must lie in \[0, 9\)"):
        vq.decode((top, bottom + 9))
    with pytest.raises(ValueError, match="levels must be 1 or 2, got 3"):
        VQConfig(levels=3)
