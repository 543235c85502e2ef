"""StyleGAN2's networks and its step: shapes, starts of variance 1, noise, truncation, path lengths."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.gan import StyleDiscriminator, StyleGAN2, StyleGAN2Config, StyleGenerator
from pyfastgan.gan.stylegan2 import path_lengths

FABRIC = SimpleNamespace(
    global_rank=0, backward=lambda loss: loss.backward(), all_reduce=lambda x, reduce_op: x
)
TINY = {
    "image_size": 8,
    "channels": 1,
    "width": 4,
    "latent_dim": 6,
    "batch_size": 8,
    "accelerator": "cpu",
    "r1_interval": 2,
    "path_interval": 3,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (64, 3)])
def test_images_in_and_out(size: int, channels: int) -> None:
    generator = StyleGenerator(size, channels=channels, width=8, latent_dim=5)
    discriminator = StyleDiscriminator(size, channels=channels, width=8)
    images = generator(torch.randn(4, 5))
    assert images.shape == (4, channels, size, size)
    assert generator.layers == 2 * int(math.log2(size)) - 2  # of the paper, section A
    scores = discriminator(images)
    assert scores.shape == (4,)
    scores.sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            if not name.endswith("strength"):  # no noise was given
                assert parameter.grad is not None, name


def test_all_maps_start_with_a_mean_square_near_1() -> None:
    """So that all layers learn alike. An enlarging convolution leaves (2 x 0.625)^2 / 4 = 0.39 of it, since three
    of four pixels that it meets are zeros and its filter is as smooth as it is."""
    generator = StyleGenerator(32, channels=3, width=64, latent_dim=64)
    found: list[float] = []
    for layer in generator.convs:
        layer.register_forward_hook(lambda *args: found.append(args[2].square().mean().item()))
    generator(torch.randn(8, 64))
    assert all(0.25 < value < 2 for value in found), found


def test_noise_is_added_where_its_strength_is_not_zero() -> None:
    generator = StyleGenerator(16, channels=1, width=4, latent_dim=4)
    latent, noise = torch.randn(3, 4), generator.noise(3, 5)
    assert [tuple(m.shape) for m in noise] == [(3, 1, s, s) for s in (4, 8, 8, 16, 16)]
    with torch.no_grad():
        assert torch.equal(generator(latent), generator(latent, noise))
        for layer in generator.convs:
            before = generator(latent, noise)
            layer.strength += 0.1
            assert not torch.equal(before, generator(latent, noise))


def test_an_image_is_the_same_for_any_count() -> None:
    generator = StyleGenerator(8, channels=1, width=4, latent_dim=4)
    for layer in generator.convs:
        nn.init.ones_(layer.strength)
    many = generator.sample(300, 7)
    torch.testing.assert_close(generator.sample(2, 7), many[:2])
    part = generator.noise(44, 7, sample_offset=256)
    assert torch.equal(part[2], generator.noise(300, 7)[2][256:])
    assert not torch.equal(many[:2], generator.sample(2, 8))


def test_truncation() -> None:
    generator = StyleGenerator(8, channels=1, width=4, latent_dim=4)
    generator.mean_style.normal_()
    torch.testing.assert_close(generator.sample(3, 1, truncation=1.0), generator.sample(3, 1))
    one = generator.sample(3, 1, truncation=0.0)
    assert torch.equal(one[0], one[1])
    styles = generator.styles(torch.randn(2, 4), 0.5)
    assert not torch.equal(styles[0], styles[1])
    with pytest.raises(ValueError, match="truncation must be at least 0"):
        generator.sample(1, 1, truncation=-0.5)


def test_the_path_length_is_the_norm_of_the_jacobian_times_the_probe() -> None:
    generator = StyleGenerator(8, channels=1, width=2, latent_dim=3).double()
    latent = torch.randn(2, 3, dtype=torch.float64)
    probe = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    ours = path_lengths(generator, latent, None, probe)
    for n in range(2):
        styles = generator.styles(latent[n : n + 1])[:, None].repeat(1, generator.layers, 1)
        jacobian = torch.autograd.functional.jacobian(generator.draw, styles).reshape(64, -1)
        product = (probe[n].flatten() / 8) @ jacobian
        expected = (product.square().sum() / generator.layers).sqrt()
        torch.testing.assert_close(ours[n], expected)
    # Second order: each weight that an image depends on moves its slopes.
    ours.sum().backward()
    assert all(layer.conv.weight.grad.any() for layer in generator.convs)


def test_the_lazy_terms_are_taken_when_due_and_the_players_move() -> None:
    gan = StyleGAN2(StyleGAN2Config(**TINY))
    real = torch.rand(8, 1, 8, 8) * 2 - 1
    for step in range(1, 7):
        before = {name: [p.clone() for p in net.parameters()] for name, net in gan.networks.items()}
        losses = gan.training_step(FABRIC, (real,), step)
        assert ("r1" in losses) == (step % 2 == 0)
        assert ("path_length" in losses) == (step % 3 == 0)
        assert not any(loss.requires_grad for loss in losses.values())
        for name, network in gan.networks.items():
            pairs = zip(before[name], network.parameters(), strict=True)
            assert any(not torch.equal(a, b) for a, b in pairs)
    generator = gan.networks["generator"]
    assert generator.mean_style.any()
    assert generator.mean_length > 0


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def test_a_step_is_its_losses_written_out() -> None:
    """Both regularisers are due; each player's gradients against those of the sum by hand."""
    config = StyleGAN2Config(**TINY, r1_weight=3.0)
    gan, hand = StyleGAN2(config), StyleGAN2(config)
    for name, network in hand.networks.items():
        network.load_state_dict(gan.networks[name].state_dict())
    generator, judge = hand.networks["generator"], hand.networks["discriminator"]
    real = torch.rand(8, 1, 8, 8) * 2 - 1
    losses = gan.training_step(FABRIC, (real,), 6)

    latent = pf.ops.random_normal((8, 6), 0, stream=6)
    fake = generator(latent)  # all strengths are zero
    points = real.clone().requires_grad_()
    (g,) = torch.autograd.grad(judge(points).sum(), points, create_graph=True)
    r1 = 2 * 3.0 / 2 * g.flatten(1).square().sum(1).mean()
    softplus = nn.functional.softplus
    loss = softplus(-judge(real)).mean() + softplus(judge(fake.detach())).mean()
    (loss + r1).backward()
    expected = {"discriminator": gradients(judge)}
    torch.testing.assert_close(losses["discriminator_loss"], loss.detach())
    torch.testing.assert_close(losses["r1"], r1.detach())

    torch.optim.Adam(judge.parameters(), config.learning_rate, config.betas).step()
    loss = softplus(-judge(fake)).mean()
    torch.testing.assert_close(losses["generator_loss"], loss.detach(), rtol=1e-4, atol=1e-5)
    loss.backward()
    ours = gradients(gan.networks["discriminator"])
    for name, theirs in expected["discriminator"].items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-3, atol=1e-5, msg=name)
    # The generator's own have the path-length term on top.
    found = gradients(gan.networks["generator"])
    assert any(
        not torch.allclose(p.grad, found[n], rtol=1e-2)
        for n, p in generator.named_parameters()
        if p.grad is not None
    )


def test_from_the_command_line_to_a_picture(tmp_path: Path) -> None:
    words = ["train", "stylegan2", "--data", "digits", "--out", str(tmp_path / "run")]
    words += ["--steps", "2", "--width", "4", "--batch_size", "8", "--accelerator", "cpu"]
    assert cli.main([*words, "--image_size", "8"]) == 0
    assert (tmp_path / "run" / "samples.png").is_file()
    assert (tmp_path / "run" / "interpolation.png").is_file()
    generator = pf.gan.load(tmp_path / "run")
    assert isinstance(generator, StyleGenerator)
    assert generator.mean_style.any()
    assert generator.sample(2, 1).shape == (2, 1, 8, 8)


def test_points_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "stylegan2", "--data", "ring8", "--out", str(tmp_path / "a")]) == 2
    assert "data must be square images" in capsys.readouterr().err
