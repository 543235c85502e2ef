"""PacGAN's packs, orthogonal regularisation and spectral norm, and training with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import pyfastgan as pf
from pyfastgan.gan import GAN, GANConfig, orthogonal_penalty, packed
from pyfastgan.gan.orthogonal import add_orthogonal_gradients, matrices

TINY = {
    "batch_size": 8,
    "accelerator": "cpu",
    "sample_every": 0,
    "sample_count": 4,
    "log_every": 1,
    "width": 4,
    "latent_dim": 3,
    "steps": 2,
}


def test_packs_hold_neighbours_behind_each_other() -> None:
    images = torch.arange(4 * 3 * 2 * 2.0).reshape(4, 3, 2, 2)
    pairs = packed(images, 2)
    assert pairs.shape == (2, 6, 2, 2)
    assert torch.equal(pairs[1, :3], images[2])
    assert torch.equal(pairs[1, 3:], images[3])
    assert packed(images, 1) is images
    points = torch.arange(6.0).reshape(3, 2)
    assert packed(points, 3).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]
    with pytest.raises(ValueError, match="samples must come in packs of 3, got 4"):
        packed(images, 3)
    with pytest.raises(ValueError, match="pack must be at least 1, got 0"):
        packed(images, 0)


@pytest.mark.parametrize("architecture", ["dcgan", "residual"])
@pytest.mark.parametrize("penalty", ["none", "r1"])
def test_images_in_packs(architecture: str, penalty: str, tmp_path: Path) -> None:
    run = pf.gan.train(
        "dcgan",
        data="digits",
        out=tmp_path / "run",
        architecture=architecture,
        penalty=penalty,
        discriminator_norm=False,
        image_size=8,
        pack=4,
        **TINY,
    )
    assert pf.gan.load(run).sample(3, seed=1).shape == (3, 1, 8, 8)
    critic = GAN(run.config).networks["discriminator"]  # type: ignore[arg-type]
    assert critic(torch.zeros(2, 4, 8, 8)).shape == (2,)


def test_points_in_packs_end_with_level_sets(tmp_path: Path) -> None:
    run = pf.gan.train("r3gan", data="ring8", out=tmp_path / "run", pack=2, **TINY)
    assert (run.path / "level_sets.png").is_file()


def test_a_packed_critic_sees_what_a_single_one_cannot() -> None:
    """One mode of two at a time: every sample is likely, and no pack of real ones is so uniform."""
    torch.manual_seed(0)
    config = GANConfig(architecture="mlp", width=32, hidden_layers=2, latent_dim=2)
    losses = {}
    for pack in (1, 4):
        critic = GAN(replace(config, pack=pack)).networks["discriminator"]
        optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
        for _ in range(150):
            real = torch.randint(2, (256, 1)).float().expand(-1, 2) * 2 - 1
            # Both modes overall, but one alone in every four neighbours.
            fake = (torch.randint(2, (64, 1)).float() * 2 - 1).repeat_interleave(4, 0).expand(-1, 2)
            loss = pf.gan.discriminator_loss(
                "non-saturating", critic(packed(real, pack)), critic(packed(fake, pack))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[pack] = loss.item()
    assert losses[1] > 1.3, "log 4 is what chance gives"
    assert losses[4] < 0.7


def test_pack_must_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of pack .* got 8 on 1 and 3"
    ):
        GANConfig(batch_size=8, pack=3)
    with pytest.raises(ValueError, match="pack must be at least 1, got 0"):
        GANConfig(pack=0)
    with pytest.raises(ValueError, match="got 8 on 2 and 8"):
        GANConfig(batch_size=8, devices=2, pack=8)


def test_orthogonal_penalty_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Conv1d(1, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0], [2.0, 1.0]]))
    # Rows 1 and 3 have the product 2, rows 2 and 3 the product 5, each counted twice.
    assert orthogonal_penalty(matrices(net)).item() == pytest.approx(2 * (2**2 + 5**2))


def test_orthogonal_gradients_are_autograds() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(4, 6)).double()
    expected = torch.autograd.grad(
        0.3 * orthogonal_penalty(matrices(net)), [net[0].weight, net[2].weight]
    )
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    add_orthogonal_gradients(matrices(net), 0.3)
    torch.testing.assert_close(net[0].weight.grad - 1, expected[0])
    torch.testing.assert_close(net[2].weight.grad - 1, expected[1])
    assert (net[0].bias.grad == 1).all()


@pytest.mark.parametrize("architecture", ["dcgan", "residual", "mlp"])
@pytest.mark.parametrize("penalty", ["none", "r1"])
def test_spectral_norm_holds_every_layer(architecture: str, penalty: str) -> None:
    """After some steps, whose power iterations have found the singular vectors."""
    fabric = Fabric(accelerator="cpu", devices=1)
    config = GANConfig(
        architecture=architecture,
        image_size=8,
        channels=1,
        width=6,
        latent_dim=3,
        batch_size=8,
        spectral_norm=True,
        orthogonal_weight=1e-3,
        discriminator_norm=False,
        penalty=penalty,
        learning_rate=1e-4,
    )
    torch.manual_seed(0)
    gan = GAN(config)
    shape = (2,) if architecture == "mlp" else (1, 8, 8)
    for step in range(1, 30):
        gan.training_step(fabric, (torch.randn(8, *shape),), step)
    critic = gan.networks["discriminator"].eval()
    weights = [m.weight for m in critic.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(weights) >= 3 or architecture == "dcgan"
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    # A copy of a run's configuration that is off has none.
    plain = GAN(replace(config, spectral_norm=False)).networks["discriminator"]
    assert not any("parametrizations" in name for name, _ in plain.named_parameters())
