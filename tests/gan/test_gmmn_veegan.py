"""GMMN and VEEGAN: their losses written out, what learns when, and whole runs on images and points."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.gan import GMMN, VEEGAN, GMMNConfig, MLPGenerator, VEEGANConfig, preset

FABRIC = SimpleNamespace(global_rank=0, backward=lambda loss: loss.backward())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def moved(system, step: int, batch) -> set[str]:
    """The networks that a step changes, with the decoder apart from its generator."""
    parts: dict[str, nn.Module] = dict(system.networks)
    if hasattr(parts["generator"], "decoder"):
        parts |= {"main": parts["generator"].main, "decoder": parts.pop("generator").decoder}
    before = {name: [p.clone() for p in part.parameters()] for name, part in parts.items()}
    system.training_step(FABRIC, (batch,), step)
    return {
        name
        for name, part in parts.items()
        if any(not torch.equal(a, b) for a, b in zip(before[name], part.parameters(), strict=True))
    }


def test_a_gmmn_learns_its_autoencoder_first() -> None:
    images = pf.data.load(torch.rand(40, 1, 8, 8) * 2 - 1)
    config = GMMNConfig(
        image_size=8,
        channels=1,
        width=8,
        latent_dim=3,
        code_dim=4,
        space="code",
        autoencoder_steps=2,
    )
    system = GMMN(config, images)
    batch = images.tensors[0][:16]
    assert moved(system, 2, batch) == {"encoder", "decoder"}
    assert moved(system, 3, batch) == {"main"}


def test_a_gmmn_step_is_the_root_of_the_biased_discrepancy() -> None:
    """In units of the median distance of the data, here of 60 points."""
    points = torch.randn(60, 2)
    config = GMMNConfig(width=8, latent_dim=2, space="data", bandwidths=(0.5, 2.0))
    system = GMMN(config, pf.data.load(points))
    generator = system.networks["generator"]
    expected = generator(pf.ops.random_normal((30, 2), 0, stream=4)).detach()
    losses = system.training_step(FABRIC, (points[:30],), 4)
    unit = torch.pdist(points).median().item()
    with pf.use_backend("reference"):
        squared = pf.ops.mmd(expected, points[:30], [0.5 * unit, 2 * unit], unbiased=False)
    torch.testing.assert_close(losses["mmd"], squared.sqrt())


def test_a_gmmn_finds_the_points(tmp_path: Path) -> None:
    """Two separate clouds, after a second of training."""
    cloud = torch.randn(512, 2, generator=torch.Generator().manual_seed(1)) * 0.1
    cloud[::2] += 2
    run = pf.gan.train(
        "gmmn", data=cloud, out=tmp_path / "run", steps=300, batch_size=128, width=32,
        accelerator="cpu", sample_every=0, bandwidths=(0.1, 0.3, 1.0),
        learning_rate=4e-3,
    )  # fmt: skip
    assert run.config.space == "data"
    samples = pf.gan.load(run).sample(500, 1)
    near = [(samples - centre).norm(dim=1) < 0.5 for centre in (0.0, 2.0)]
    assert all(share.float().mean() > 0.25 for share in near)


def test_a_veegan_step_is_algorithm_1_written_out() -> None:
    config = VEEGANConfig(width=8, latent_dim=3, reconstruction_weight=0.7)
    gan, hand = VEEGAN(config), VEEGAN(config)
    for name, network in hand.networks.items():
        network.load_state_dict(gan.networks[name].state_dict())
    generator, reconstructor, judge = hand.networks.values()
    real = torch.randn(16, 2)
    losses = gan.training_step(FABRIC, (real,), 5)

    z = pf.ops.random_normal((16, 3), 0, stream=5)
    fake, sigmoid = generator(z), torch.sigmoid
    loss = -sigmoid(judge(z, fake.detach())).log().mean()
    loss = loss - (1 - sigmoid(judge(reconstructor(real).detach(), real))).log().mean()
    loss.backward()
    torch.testing.assert_close(losses["discriminator_loss"], loss.detach())
    for (name, ours), p in zip(
        gan.networks["discriminator"].named_parameters(), judge.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, p.grad, rtol=1e-4, atol=1e-6, msg=name)

    torch.optim.Adam(judge.parameters(), config.learning_rate, config.betas).step()
    error = (z - reconstructor(fake)).square().sum(1).mean()
    (judge(z, fake).mean() + 0.7 * error).backward()
    for name in ("generator", "reconstructor"):
        for ours, p in zip(
            gan.networks[name].parameters(), hand.networks[name].parameters(), strict=True
        ):
            torch.testing.assert_close(ours.grad, p.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["gmmn", "veegan"])
def test_images_from_the_command_line_to_a_picture(name: str, tmp_path: Path) -> None:
    words = ["train", name, "--data", "digits", "--out", str(tmp_path / "run"), "--steps", "3"]
    words += ["--batch_size", "16", "--width", "8", "--accelerator", "cpu", "--image_size", "8"]
    if name == "gmmn":
        words += ["--autoencoder_steps", "1"]
    assert cli.main(words) == 0
    assert (tmp_path / "run" / "samples.png").is_file()
    generator = pf.gan.load(tmp_path / "run")
    assert generator.sample(3, 1).shape == (3, 1, 8, 8)
    torch.testing.assert_close(generator.sample(300, 1)[:3], generator.sample(3, 1))


def test_points_have_presets_of_their_own(tmp_path: Path) -> None:
    assert preset("gmmn", "grid25").latent_dim == 2
    assert preset("veegan", "digits").data == "digits"
    run = pf.gan.train(
        "veegan", data="ring8", out=tmp_path / "run", steps=2, batch_size=16, accelerator="cpu"
    )
    generator = pf.gan.load(run)
    assert isinstance(generator, MLPGenerator)
    assert generator.sample(4, 1).shape == (4, 2)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"space": "pixels"}, "space must be"),
        ({"bandwidths": ()}, "bandwidths must hold at least one"),
        ({"bandwidths": (1.0, -1.0)}, "bandwidths must be at least"),
        ({"image_size": 12}, "image_size must be one of"),
        ({"betas": (0.0, 1.0)}, "betas must be below 1"),
    ],
)
def test_bad_configurations_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GMMNConfig(**fields)


def test_data_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data must be square images of 8 pixels"):
        pf.gan.train("veegan", data=torch.zeros(20, 1, 16, 16), out=tmp_path / "a", image_size=8)
