"""Training tiny models: the losses of a step, exact resumption, the test's figures, the run folder, and
bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.data import ImageData, TensorData
from pyfastgan.vae import VAEConfig, VAESystem
from pyfastgan.vae.datasets import some_images
from pyfastgan.vae.system import build, evaluate

TINY = {
    "batch_size": 16,
    "width": 8,
    "latent_dim": 2,
    "accelerator": "cpu",
    "log_every": 5,
    "sample_every": 0,
    "checkpoint_every": 100,
    "sample_count": 4,
    "test_samples": 3,
}
FABRIC = SimpleNamespace(
    global_rank=0,
    backward=lambda loss: loss.backward(),
    strategy=SimpleNamespace(precision=None),
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def system(**changes) -> VAESystem:
    config = VAEConfig(**{**TINY, "image_size": 8, "channels": 1, **changes})
    return VAESystem(config, TensorData(batch()[0]), None)


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(16, 1, 8, 8) * 2 - 1, torch.arange(16) % 10


def test_a_step_descends_the_bound_written_out() -> None:
    vae, hand = system(), system()
    model = hand.networks["model"]
    model.load_state_dict(vae.networks["model"].state_dict())
    items = batch()
    losses = vae.training_step(FABRIC, items, 7)
    x = (2 * pf.ops.random_uniform(items[0].shape, 0, stream=14) - 1 < items[0]).float()
    mean, logvar = model.encoder(2 * x - 1).chunk(2, 1)
    z = mean + (0.5 * logvar).exp() * pf.ops.random_normal(mean.shape, 0, stream=15)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        model.decoder(z), x, reduction="sum"
    )
    kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
    ((entropy + kl) / 16).backward()
    torch.optim.Adam(model.parameters(), 1e-3).step()
    torch.testing.assert_close(losses["nll"], entropy.detach() / 16)
    torch.testing.assert_close(losses["kl"], kl.detach() / 16)
    torch.testing.assert_close(losses["loss"], losses["nll"] + losses["kl"])
    for ours, theirs in zip(vae.networks["model"].parameters(), model.parameters()):
        torch.testing.assert_close(ours, theirs)


def test_beta_and_capacity_weigh_the_divergence() -> None:
    for step, changes in ((3, {"beta": 4.0}), (5, {"beta": 10.0, "capacity": 8.0})):
        losses = system(capacity_steps=20, **changes).training_step(FABRIC, batch(), step)
        weighed = 4 * losses["kl"] if step == 3 else 10 * (losses["kl"] - 8 * 5 / 20).abs()
        torch.testing.assert_close(losses["loss"], losses["nll"] + weighed)
    # Once it has risen it stays.
    losses = system(capacity_steps=20, beta=1.0, capacity=8.0).training_step(FABRIC, batch(), 90)
    torch.testing.assert_close(losses["loss"], losses["nll"] + (losses["kl"] - 8).abs())


def test_a_step_on_the_importance_bound() -> None:
    iwae = system(importance_samples=5)
    items = batch()
    model = iwae.networks["model"]
    x = model.observe(items[0], 0, stream=4)
    nll, ratio = model(x, samples=5, seed=0, stream=5)
    expected = -(torch.exp(-nll - ratio).mean(1).log()).mean()
    losses = iwae.training_step(FABRIC, items, 2)
    torch.testing.assert_close(losses["loss"], expected.detach())


def test_noise_depends_on_the_place_in_the_global_batch_alone() -> None:
    items, seen = batch(), []
    for rank, part in ((0, slice(0, 16)), (0, slice(0, 8)), (1, slice(8, 16))):
        vae = system()
        vae.networks["model"].decoder.register_forward_pre_hook(lambda _, z: seen.append(z[0]))
        torch.manual_seed(0)
        for parameter in vae.networks["model"].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        fabric = SimpleNamespace(**{**vars(FABRIC), "global_rank": rank})
        vae.training_step(fabric, tuple(item[part] for item in items), 3)
    torch.testing.assert_close(seen[0], torch.cat(seen[1:]))


def test_the_test_averages_over_all_images() -> None:
    """More than one batch, the last one short, bytes with labels."""
    images = torch.randint(0, 256, (330, 1, 8, 8), dtype=torch.uint8)
    data = ImageData(images, torch.arange(330) % 3)
    for likelihood in ("bernoulli", "gaussian"):
        changes = {"conditional": True, "classes": 3, "likelihood": likelihood}
        config = VAEConfig(**{**TINY, "image_size": 8, "channels": 1, **changes})
        model = build(config)
        found = evaluate(model, data, config)
        x = model.observe(data[:][0], 0, stream=1)
        nll, kl = model(x, data.stored[1], seed=0)
        assert math.isclose(found["elbo"], -(nll + kl).mean().item(), rel_tol=1e-5)
        nll = model.nll(x, 3, data.stored[1])
        assert math.isclose(found["nll"], nll.mean().item(), rel_tol=1e-5)
        assert math.isclose(found["nll_error"], nll.std().item() / 330**0.5, rel_tol=1e-4)
        bits = found["nll"] / 64 / math.log(2) + (likelihood == "gaussian") * math.log2(127.5)
        assert math.isclose(found["bits_per_dim"], bits, rel_tol=1e-5)
        assert found["images"] == 330


def train(out: Path, name="vae", **changes) -> pf.training.Run:
    return pf.vae.train(name, out=out, **{**TINY, **changes})


def test_a_stopped_and_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", steps=40)
    train(tmp_path / "parts", steps=20)
    torch.manual_seed(123)
    parts = train(tmp_path / "parts", steps=40, resume=True)
    weights = load_file(whole.weights), load_file(parts.weights)
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    for name in ("test.json", "samples.png", "manifold.png", "traversals.png"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()
    for ours, theirs in zip(whole.history, parts.history, strict=True):
        assert [ours[key] for key in ("step", "loss", "kl")] == [
            theirs[key] for key in ("step", "loss", "kl")
        ]


def test_digits_are_learned_and_tested_on_the_others(tmp_path: Path) -> None:
    """Far better than independent pixels of the right brightness, and than the mean image."""
    changes = {"width": 100, "latent_dim": 10, "batch_size": 64, "test_samples": 20}
    run = train(tmp_path / "run", steps=500, learning_rate=3e-3, **changes)
    found = json.loads((run.path / "test.json").read_text())
    assert found["images"] == 597
    assert found["held_out"] == "the test split"
    assert run.config.data == "digits:train"
    assert found["nll"] < -found["elbo"] < 25.5
    images = pf.data.load("digits:test").tensors[0]
    model = pf.vae.load(run)
    x = model.observe(images, 0, stream=1)
    assert abs(model.nll(x, 20).mean().item() - found["nll"]) < 1e-3
    # What is reconstructed from is a binary drawing, so even the best is not the image.
    assert (model.reconstruct(x) - images).square().mean() < 0.75 * images.var(0).mean()
    brightness = ((pf.data.load("digits:train").tensors[0].mean(0) + 1) / 2).clamp(1e-3, 1 - 1e-3)
    independent = -(x * brightness.log() + (1 - x) * (1 - brightness).log()).sum((1, 2, 3))
    assert found["nll"] < independent.mean() - 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("iwae", {"importance_samples": 3}),
        ("beta-vae", {"likelihood": "gaussian", "data": "photos", "network": "conv"}),
        ("vae", {"conditional": True}),
    ],
)
def test_presets_end_to_end(tmp_path: Path, capsys, name: str, changes: dict) -> None:
    out = tmp_path / "run"
    options = {**TINY, "steps": 3, "test_samples": 2, **changes}
    words = [
        f"--{key}={str(value).lower() if value is True else value}"
        for key, value in options.items()
    ]
    assert cli.main(["train", name, "--out", str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "the test split: " in printed
    assert "samples 2, elbo" in printed
    assert (out / "reconstructions.png").is_file()
    assert cli.main(["sample", str(out), "--count", "6"]) == 0
    model = pf.vae.load(out)
    torch.testing.assert_close(model.sample(6, 1)[:3], model.sample(3, 1))


def test_own_data_without_a_test_split(tmp_path: Path) -> None:
    images = torch.rand(20, 1, 12, 12) * 2 - 1
    run = train(tmp_path / "run", data=images, steps=2, network="conv")
    assert json.loads((run.path / "test.json").read_text())["held_out"].startswith("training")
    with pytest.raises(ValueError, match="data must be given"):
        pf.vae.train(run.config_file, out=tmp_path / "other")


def test_pictures_show_images_from_all_over_the_data() -> None:
    images = torch.linspace(-1, 1, 103).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    for count, expected in ((10, range(0, 100, 10)), (200, range(103))):
        (chosen,) = some_images(TensorData(images), count)
        assert torch.equal(chosen, images[list(expected)])


def test_bad_input(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="vae"):
        pf.vae.train("vea", out=out)
    with pytest.raises(ValueError, match="data must be images of shape"):
        train(out, data="moons")
    with pytest.raises(ValueError, match="images must lie in"):
        train(out, data=torch.rand(20, 1, 8, 8) * 255)
    with pytest.raises(ValueError, match="conditional model needs labels"):
        train(out, data=torch.zeros(20, 1, 8, 8), conditional=True)
    with pytest.raises(ValueError, match="beta and capacity"):
        VAEConfig(importance_samples=5, beta=2.0)
    for name, value in (("latent_dim", 0), ("network", "rnn"), ("capacity", -1.0)):
        with pytest.raises(ValueError, match=name):
            VAEConfig(**{name: value})
    with pytest.raises(ValueError, match="image_size and channels must be given"):
        build(VAEConfig())
    assert not out.exists()
