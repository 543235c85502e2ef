"""WGAN, WGAN-GP and R3GAN: their networks, steps and presets, and the toys in the plane."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.gan import (
    GAN,
    POINT_PRESETS,
    PRESETS,
    Discriminator,
    GANConfig,
    MLPCritic,
    MLPGenerator,
    ResidualCritic,
    ResidualGenerator,
    critic_step,
    preset,
)
from pyfastgan.gan.level_sets import level_set_picture

TINY = {"batch_size": 8, "accelerator": "cpu", "sample_every": 0, "sample_count": 4, "log_every": 1}
SMALL_IMAGES = {**TINY, "image_size": 8, "channels": 1, "width": 4, "latent_dim": 6}
SMALL_POINTS = {**TINY, "width": 16}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def test_presets_are_the_papers() -> None:
    wgan, gp, r3 = (PRESETS[name] for name in ("wgan", "wgan-gp", "r3gan"))
    assert (wgan.objective, wgan.clip, wgan.optimizer) == ("wgan", 0.01, "rmsprop")
    assert (wgan.learning_rate, wgan.discriminator_steps, wgan.penalty) == (5e-5, 5, "none")
    assert (gp.objective, gp.penalty, gp.penalty_weight) == ("wgan", "wgan-gp", 10.0)
    assert (gp.learning_rate, gp.betas, gp.discriminator_steps) == (1e-4, (0.0, 0.9), 5)
    assert (r3.objective, r3.penalty, r3.architecture) == ("relativistic", "r1r2", "residual")
    toy = POINT_PRESETS["wgan-gp"]
    assert (toy.architecture, toy.width, toy.batch_size, toy.latent_dim) == ("mlp", 512, 256, 2)
    assert (toy.penalty_weight, toy.learning_rate, toy.betas) == (0.1, 1e-4, (0.5, 0.9))


def test_points_choose_their_networks() -> None:
    assert preset("wgan-gp", "25gaussians-wgan") is POINT_PRESETS["wgan-gp"]
    assert preset("wgan-gp", torch.zeros(3, 2)) is POINT_PRESETS["wgan-gp"]
    assert preset("wgan-gp", pf.data.load("moons", count=2)) is POINT_PRESETS["wgan-gp"]
    for data in (None, "digits", torch.zeros(3, 1, 8, 8), pf.data.load("digits")):
        assert preset("wgan-gp", data) is PRESETS["wgan-gp"]
    assert preset("dcgan", "moons") is PRESETS["dcgan"]
    with pytest.raises(ValueError, match="did you mean 'wgan-gp'"):
        preset("wgan_gp")


def test_the_networks_of_the_toys() -> None:
    """Three hidden layers of 512 units with ReLU."""
    for network, ends in ((MLPGenerator(), (2, 2)), (MLPCritic(), (2, 1))):
        shapes = [tuple(layer.weight.shape) for layer in network.main if hasattr(layer, "weight")]
        assert shapes == [(512, ends[0]), (512, 512), (512, 512), (ends[1], 512)]
        assert sum(isinstance(layer, nn.ReLU) for layer in network.main) == 3
    assert MLPCritic(width=4)(torch.zeros(5, 2)).shape == (5,)
    points = MLPGenerator(width=4).sample(300, seed=1)
    assert points.shape == (300, 2)
    with pytest.raises(ValueError, match=r"latent must be of shape \(N, 2\), not \(3, 4\)"):
        MLPGenerator(width=4)(torch.zeros(3, 4))


@pytest.mark.parametrize("size", [8, 16, 64])
def test_residual_networks(size: int) -> None:
    generator = ResidualGenerator(size, channels=3, width=4, latent_dim=5)
    critic = ResidualCritic(size, channels=3, width=4)
    images = generator(generator.latents(6, seed=1))
    assert images.shape == (6, 3, size, size)
    assert 0.2 < float(images.detach().std()) < 5, "variance is kept through the layers"
    scores = critic(images)
    assert scores.shape == (6,)
    torch.testing.assert_close(critic(images[2:3]), scores[2:3])
    assert not any("norm" in type(module).__name__.lower() for module in critic.modules())
    scores.sum().backward()
    assert all(p.grad is not None for p in [*generator.parameters(), *critic.parameters()])


def test_residual_networks_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="image_size must be one of"):
        ResidualCritic(12)
    with pytest.raises(TypeError, match="width must be an integer"):
        ResidualGenerator(8, width=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images must be of shape \(N, 3, 8, 8\)"):
        ResidualCritic(8)(torch.zeros(1, 3, 8, 9))
    with pytest.raises(TypeError, match="latent must be a floating-point"):
        ResidualGenerator(8)(torch.zeros(1, 100, dtype=torch.int64))


def test_a_discriminator_without_norm_judges_each_image_by_itself() -> None:
    critic = Discriminator(16, channels=1, width=8, norm=None)
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(critic(images)[1:2], critic(images[1:2]))
    assert 0.1 < float(critic(torch.randn(256, 1, 16, 16)).detach().std()) < 10


def batches(config: GANConfig) -> Tensor:
    size, channels = config.image_shape
    return torch.rand(config.batch_size, channels, size, size) * 2 - 1


def test_wgan_clips_its_weights_and_logs_the_distance(fabric: Fabric) -> None:
    gan = GAN(replace(PRESETS["wgan"], **SMALL_IMAGES))
    critic = gan.networks["discriminator"]
    (real,) = (batches(gan.config),)
    losses = gan.training_step(fabric, (real,), 1)
    assert set(losses) == {"wasserstein_estimate"}
    largest = max(float(p.detach().abs().max()) for p in critic.parameters())
    assert largest == pytest.approx(0.01)
    assert isinstance(gan.optimizers["discriminator"], torch.optim.RMSprop)


def test_a_wgan_gp_step_is_algorithm_1_written_out(fabric: Fabric) -> None:
    """The critic's Adam step on E D(fake) - E D(real) + 10 E (|g| - 1)^2, with the step's noise."""
    config = replace(PRESETS["wgan-gp"], **SMALL_IMAGES)
    gan, hand = GAN(config), GAN(config)
    for name, network in hand.networks.items():
        network.load_state_dict(gan.networks[name].state_dict())
    critic = hand.networks["discriminator"]
    real = batches(config)
    losses = gan.training_step(fabric, (real,), 7)

    with torch.no_grad():
        fake = hand.networks["generator"](pf.ops.random_normal((8, 6), 0, stream=7))
    share = pf.ops.random_uniform((8, 1), 0, stream=2**31 + 7).reshape(8, 1, 1, 1)
    between = (share * real + (1 - share) * fake).requires_grad_(True)
    (g,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norms = g.flatten(1).norm(dim=1)
    adversarial = critic(fake).mean() - critic(real).mean()
    penalty = 10 * (norms - 1).square().mean()
    (adversarial + penalty).backward()
    torch.optim.Adam(critic.parameters(), 1e-4, (0.0, 0.9)).step()
    torch.testing.assert_close(losses["wasserstein_estimate"], -adversarial.detach())
    torch.testing.assert_close(losses["penalty"], penalty.detach())
    torch.testing.assert_close(losses["gradient_norm"], norms.mean().detach())
    ours = gan.networks["discriminator"].state_dict()
    for key, value in critic.state_dict().items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_an_r3gan_step_is_its_losses_written_out(fabric: Fabric) -> None:
    """Both players: E softplus(-(r - f)) + R1 + R2, and E softplus(-(f - r)) after it."""
    config = replace(PRESETS["r3gan"], **SMALL_IMAGES)
    gan, hand = GAN(config), GAN(config)
    for name, network in hand.networks.items():
        network.load_state_dict(gan.networks[name].state_dict())
    generator, critic = hand.networks["generator"], hand.networks["discriminator"]
    real = batches(config)
    losses = gan.training_step(fabric, (real,), 3)

    fake = generator(pf.ops.random_normal((8, 6), 0, stream=3))
    penalty, scores = torch.zeros(()), []
    for points in (real, fake.detach()):
        points = points.clone().requires_grad_(True)
        scores.append(critic(points))
        (g,) = torch.autograd.grad(scores[-1].sum(), points, create_graph=True)
        penalty = penalty + config.penalty_weight / 2 * g.flatten(1).square().sum(1).mean()
    adversarial = nn.functional.softplus(scores[1] - scores[0]).mean()
    (adversarial + penalty).backward()
    grads = {name: p.grad.clone() for name, p in critic.named_parameters()}
    torch.optim.Adam(critic.parameters(), config.learning_rate, config.betas).step()
    loss = nn.functional.softplus(critic(real) - critic(fake)).mean()
    loss.backward()
    players = {"generator": {n: p.grad for n, p in generator.named_parameters()}}
    players["discriminator"] = grads
    torch.testing.assert_close(losses["discriminator_loss"], adversarial.detach())
    torch.testing.assert_close(losses["penalty"], penalty.detach())
    torch.testing.assert_close(losses["generator_loss"], loss.detach(), rtol=1e-4, atol=1e-5)
    # Not the weights: Adam makes a step of the rounding error in the last bias's gradient, which is 0.
    for player, expected in players.items():
        for name, parameter in gan.networks[player].named_parameters():
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=f"{player}.{name}"
            )


@pytest.mark.parametrize(
    "critic",
    [
        Discriminator(16, channels=1, width=4, norm=None),
        ResidualCritic(16, channels=1, width=4),
        MLPCritic(width=8),
    ],
)
def test_the_critics_of_the_presets_need_no_double_backward(critic: nn.Module) -> None:
    shape = getattr(critic, "image_shape", (2,))
    real, fake = torch.randn(2, 3, *shape)
    assert critic_step(critic, real, fake, loss="wgan", penalty="r1r2", weight=1.0).plan == "fused"


def test_a_lazy_penalty_is_taken_on_one_step_in_k(fabric: Fabric) -> None:
    gan = GAN(replace(PRESETS["r3gan"], **SMALL_IMAGES, penalty_interval=3))
    taken = ["penalty" in gan.training_step(fabric, (batches(gan.config),), k) for k in range(1, 7)]
    assert taken == [False, False, True, False, False, True]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    run = pf.gan.train(
        "wgan-gp", data="digits", out=tmp_path / "run", steps=6, precision=precision, **SMALL_IMAGES
    )
    assert all(row["gradient_norm"] > 0 for row in run.history)


@pytest.mark.parametrize("name", ["wgan", "wgan-gp", "r3gan"])
def test_training_stopped_and_resumed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = pf.gan.train(name, out=tmp_path / "whole", steps=12, **SMALL_IMAGES)
    pf.gan.train(name, out=tmp_path / "parts", steps=7, **SMALL_IMAGES)
    parts = pf.gan.train(name, out=tmp_path / "parts", steps=12, resume=True, **SMALL_IMAGES)
    assert whole.weights.read_bytes() == parts.weights.read_bytes()
    assert torch.equal(pf.gan.load(whole).sample(3, 1), pf.gan.load(parts).sample(3, 1))


def test_the_command_line_chooses_networks_by_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "wgan-gp", "--data", "8gaussians-wgan", "--out", str(tmp_path / "run")]
    words += ["--steps", "6", "--width", "8", "--accelerator", "cpu", "--log_every", "1"]
    assert cli.main(words) == 0
    run = pf.training.Run.open(tmp_path / "run", GANConfig)
    assert isinstance(run.config, GANConfig)
    assert (run.config.architecture, run.config.width, run.config.penalty_weight) == ("mlp", 8, 0.1)
    assert {"wasserstein_estimate", "penalty", "gradient_norm"} <= run.history[0].keys()
    assert "level_sets.png" in capsys.readouterr().out
    assert Image.open(run.path / "level_sets.png").size == (500, 500)
    assert pf.gan.load(run).sample(5, seed=1).shape == (5, 2)
    # A resumed run keeps its networks; the file of a run chooses them too.
    assert cli.main([*words[:2], "--out", str(run.path), "--resume", "--steps", "8"]) == 0
    words = ["train", "wgan-gp", "--config", str(run.config_file), "--out", str(tmp_path / "two")]
    assert cli.main([*words, "--steps", "1"]) == 0


def test_points_of_ones_own(tmp_path: Path) -> None:
    points = torch.randn(64, 2)
    run = pf.gan.train("wgan-gp", data=points, out=tmp_path / "run", steps=2, **SMALL_POINTS)
    assert isinstance(run.config, GANConfig)
    assert run.config.architecture == "mlp"
    with pytest.raises(ValueError, match=r"points of shape \(2,\), got items of shape \(1, 8, 8\)"):
        pf.gan.train(run.config, data=torch.zeros(9, 1, 8, 8), out=tmp_path / "other")


def test_level_sets_are_those_of_the_critic() -> None:
    """Over D(x, y) = y the shade changes from row to row and hardly along a row."""
    data = torch.rand(50, 2) * 2 - 1
    samples = torch.zeros(1, 2)
    pixels = level_set_picture(lambda x: x[:, 1], samples, data).astype(float)
    inside = pixels[150:350, 150:350].mean(2)
    plain = level_set_picture(lambda x: torch.zeros(len(x)), samples, data).astype(float)
    shade = torch.from_numpy(inside).median(1).values
    assert shade[0] > shade[-1] + 20, "the high side is the bright one"
    assert torch.from_numpy(plain[150:350, 150:350].mean(2)).median(1).values.unique().numel() == 1


def test_bad_configurations(tmp_path: Path) -> None:
    for changes, says in (
        ({"penalty": "wgangp"}, "did you mean 'wgan-gp'"),
        ({"penalty_weight": -1.0}, "penalty_weight must be at least 0, got -1"),
        ({"clip": -0.1}, "clip must be at least 0"),
        ({"penalty_interval": 0}, "penalty_interval must be at least 1"),
        ({"architecture": "resnet"}, "architecture must be one of dcgan, residual, mlp"),
        ({"optimizer": "rms"}, "did you mean 'rmsprop'"),
    ):
        with pytest.raises(ValueError, match=says):
            pf.gan.train("wgan-gp", out=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
