"""Class-conditional GANs and BigGAN: what the networks are told, the steps, truncation, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.gan import (
    PRESETS,
    BigGANDiscriminator,
    BigGANGenerator,
    ConditionalConfig,
    ConditionalDiscriminator,
    ConditionalGAN,
    ConditionalGenerator,
    SelfAttention,
    biggan,
    orthogonal_penalty,
)
from pyfastgan.gan.biggan import ConditionalNorm, DownBlock, UpBlock
from pyfastgan.gan.orthogonal import add_orthogonal_gradients
from pyfastgan.training import image_grid

SHAPES = {"image_size": 16, "channels": 1, "classes": 3}
TINY = {**SHAPES, "batch_size": 8, "width": 4, "latent_dim": 6, "embedding": 5}
BIG = {**TINY, "architecture": "biggan", "conditioning": "projection", "objective": "hinge"}
RUN = {"accelerator": "cpu", "log_every": 1, "sample_every": 0, "sample_count": 10}
FABRIC = SimpleNamespace(
    global_rank=0,
    backward=lambda loss: loss.backward(),
    autocast=lambda: torch.autocast("cpu", enabled=False),
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    drawn = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return drawn * 2 - 1, torch.arange(count) % 3


def big_generator(**changes: int) -> BigGANGenerator:
    generator = BigGANGenerator(
        **{**SHAPES, "width": 4, "latent_dim": 6, "embedding": 5, **changes}
    )
    nn.init.normal_(generator.attention.gamma)
    return generator


@pytest.mark.parametrize("conditioning", ["concat", "projection", "auxiliary"])
def test_what_a_discriminator_is_told(conditioning: str) -> None:
    judge = ConditionalDiscriminator(**SHAPES, width=4, conditioning=conditioning, norm=None)
    images, labels = batch(4)
    found = judge(images, labels)
    if conditioning == "concat":
        maps = torch.zeros(4, 3, 16, 16)
        maps[torch.arange(4), labels] = 1
        features = judge.features(torch.cat([images, maps], 1))
        expected = judge.score(features)[:, 0, 0, 0]
    else:
        features = judge.features(images)
        expected = judge.score(features)[:, 0, 0, 0]
    if conditioning == "projection":
        vectors = judge.embed.weight[labels]
        expected = expected + torch.einsum("nc,nchw->n", vectors, features)
    if conditioning == "auxiliary":
        found, logits = found
        weight, bias = judge.classifier.conv.weight, judge.classifier.conv.bias
        by_hand = torch.einsum("nchw,kchw->nk", features, weight) + bias
        torch.testing.assert_close(logits, by_hand)
    torch.testing.assert_close(found, expected)


def test_the_label_stands_beside_the_latent_vector() -> None:
    generator = ConditionalGenerator(**SHAPES, width=4, latent_dim=2).eval()
    latent = torch.randn(1, 2)
    expected = generator.main(torch.cat([latent, torch.tensor([[0.0, 0.0, 1.0]])], 1))
    assert torch.equal(generator(latent, torch.tensor([2])), expected)


def test_self_attention_is_torchs() -> None:
    layer = SelfAttention(16)
    nn.init.constant_(layer.gamma, 0.7)
    x = torch.randn(2, 16, 6, 4)
    heads = [layer.query(x), *(functional.max_pool2d(f(x), 2) for f in (layer.key, layer.value))]
    query, key, value = (part.flatten(2).mT for part in heads)
    seen = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    expected = x + 0.7 * layer.out(seen.mT.unflatten(2, (6, 4)))
    # torch's module wants keys and queries as wide as values, and scales: zeros, and the root.
    attention = nn.MultiheadAttention(8, 1, bias=False, batch_first=True)
    wide = [functional.pad(part, (0, 8 - part.shape[2])) for part in (query, key, value)]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
        attention.in_proj_weight[:8] *= 8**0.5
        attention.out_proj.weight.copy_(torch.eye(8))
    by_module, _ = attention(*wide)
    layer.eval()
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(by_module, seen)


def test_self_attention_begins_as_the_identity_and_bends_twice() -> None:
    layer = SelfAttention(8).double().eval()
    x = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layer(x), x)
    nn.init.ones_(layer.gamma)
    assert torch.autograd.gradgradcheck(layer, x)


def test_every_weight_of_biggan_has_torchs_spectral_norm() -> None:
    for network in (big_generator(), BigGANDiscriminator(**SHAPES, width=4)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert isinstance(module.parametrizations.weight[0], _SpectralNorm)
                # Newly orthogonal weights: the largest singular value is 1.
                top = torch.linalg.matrix_norm(module.weight.flatten(1), 2)
                assert top.item() == pytest.approx(1, abs=1e-2)
    assert not parametrize.is_parametrized(big_generator().embed)
    assert parametrize.is_parametrized(BigGANDiscriminator(**SHAPES, width=4).embed)


def test_the_conditional_norm_is_the_papers() -> None:
    norm = ConditionalNorm(4, 3)
    x, y = torch.randn(5, 4, 2, 2), torch.randn(5, 3)
    plain = nn.BatchNorm2d(4, affine=False)
    norm.gain.eval(), norm.bias.eval()  # the weight as it is, without another power iteration
    expected = plain(x) * (1 + y @ norm.gain.weight.T)[..., None, None]
    expected = (expected + (y @ norm.bias.weight.T)[..., None, None]).relu()
    torch.testing.assert_close(norm(x, y), expected)
    torch.testing.assert_close(norm.norm.running_var, plain.running_var)


def test_blocks_are_the_papers() -> None:
    """The shortcut after the doubling, and before the halving, as the paper draws them."""
    up = UpBlock(4, 6, 3).eval()
    x, y = torch.randn(2, 4, 4, 4), torch.randn(2, 3)
    doubled = nn.UpsamplingNearest2d(scale_factor=2)
    h = up.conv1(doubled(up.norm1(x, y)))
    expected = up.conv2(up.norm2(h, y)) + up.shortcut(doubled(x))
    torch.testing.assert_close(up(x, y), expected)
    for first in (False, True):
        down = DownBlock(4, 6, halve=True, first=first).eval()
        h = down.conv2(down.conv1(x if first else x.relu()).relu())
        expected = functional.avg_pool2d(h + down.shortcut(x), 2)
        torch.testing.assert_close(down(x), expected)
    kept = DownBlock(4, 4, halve=False).eval()
    torch.testing.assert_close(kept(x), x + kept.conv2(kept.conv1(x.relu()).relu()))


def test_the_pieces_of_the_latent_vector_go_to_their_blocks() -> None:
    """Norms that are changed from a block on show in the image if a later piece changes alone."""
    generator = big_generator().eval()  # 2 blocks: 3 pieces of 2
    seen: list[Tensor] = []
    for block in generator.blocks:
        block.norm1.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    latent, labels = torch.randn(2, 6), torch.tensor([0, 2])
    generator(latent, labels)
    embedded = generator.embed.weight[labels]
    for place, found in enumerate(seen):
        piece = latent[:, 2 + 2 * place : 4 + 2 * place]
        assert torch.equal(found, torch.cat([embedded, piece], 1))


def test_truncation_zero_gives_one_image_a_class() -> None:
    generator = big_generator().eval()
    images = generator.sample(6, 1, truncation=0)
    torch.testing.assert_close(images[:3], images[3:], atol=1e-5, rtol=0)
    assert (images[0] - images[1]).abs().max() > 0.01
    spread = [
        generator.sample(90, 1, t, torch.zeros(90, dtype=torch.int64)).std(0).mean()
        for t in (0.2, 1.0, None)
    ]
    assert spread == sorted(spread)


def test_standing_statistics_are_those_of_many_samples() -> None:
    """Of the last norm's input, computed apart from 4,096 samples; and a batch's size no longer
    matters."""
    generator = big_generator().eval()
    generator.standing_statistics(0.5)
    assert not any(module.training for module in generator.modules())
    mean, var = generator.norm.running_mean.clone(), generator.norm.running_var.clone()
    seen: list[Tensor] = []
    generator.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    generator.train()
    with torch.no_grad():
        latents = generator.latents(2049, 3, truncation=0.5)
        generator(latents, torch.arange(2049) % 3)
    generator.eval()
    torch.testing.assert_close(mean, seen[0].mean((0, 2, 3)), atol=0.05, rtol=0.1)
    torch.testing.assert_close(var, seen[0].var((0, 2, 3)), atol=0.02, rtol=0.15)
    labels = torch.zeros(5, dtype=torch.int64)
    whole = generator.sample(5, 2, 0.5, labels)
    torch.testing.assert_close(generator.sample(2, 2, 0.5, labels[:2]), whole[:2])
    # Kept until another truncation is asked for, another state is loaded, or training goes on.
    assert generator._standing == 0.5
    generator.load_state_dict(generator.state_dict())
    assert generator._standing != 0.5


def test_the_orthogonal_penalty_and_its_gradient() -> None:
    """Against the equation in float64, for matrices of both shapes and convolutions."""
    weights = [
        nn.Parameter(torch.randn(*shape, dtype=torch.float64))
        for shape in ((3, 5), (7, 2), (4, 2, 3, 3))
    ]
    value = torch.zeros((), dtype=torch.float64)
    for weight in weights:
        rows = weight.flatten(1)
        product = rows @ rows.T
        value = value + (product * (1 - torch.eye(len(rows)))).square().sum()
    torch.testing.assert_close(orthogonal_penalty(weights), value)
    expected = torch.autograd.grad(0.1 * value, weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    add_orthogonal_gradients(weights, 0.1)
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, 1 + gradient)
    with pytest.raises(ValueError, match="weights must hold at least one"):
        orthogonal_penalty([])


def test_the_generators_gradient_has_the_orthogonal_part() -> None:
    found = {}
    for strength in (0.0, 0.5):
        torch.manual_seed(0)
        system = ConditionalGAN(ConditionalConfig(**BIG, orthogonal=strength))
        weights = [w.detach().clone() for w in system.networks["generator"].regularised()]
        system.optimizers["generator"].step = lambda: None
        system.training_step(FABRIC, batch(), 1)
        found[strength] = [w.grad for w in system.networks["generator"].regularised()]
    for none, some, weight in zip(found[0.0], found[0.5], weights, strict=True):
        weight.requires_grad_()
        (extra,) = torch.autograd.grad(0.5 * orthogonal_penalty([weight]), weight)
        torch.testing.assert_close(some - none, extra, atol=1e-4, rtol=1e-3)


def gradients(system: ConditionalGAN, name: str) -> list[Tensor]:
    return [p.grad.clone() for p in system.networks[name].parameters()]


def stepped(step: int = 1, **changes: object) -> tuple[ConditionalGAN, dict[str, Tensor]]:
    torch.manual_seed(0)
    system = ConditionalGAN(ConditionalConfig(**{**BIG, **changes}))
    for optimizer in system.optimizers.values():
        optimizer.step = lambda: None
    return system, system.training_step(FABRIC, batch(), step)


def test_a_batch_in_parts_gives_the_same_gradients() -> None:
    """Of both players, on networks without batch norm: dcgan's generator has it, so that it takes its
    turn in evaluation mode."""
    changes = {"architecture": "dcgan", "discriminator_norm": False, "penalty": "r1"}
    found = []
    for parts in (1, 4):
        torch.manual_seed(0)
        system = ConditionalGAN(ConditionalConfig(**{**BIG, **changes, "accumulate": parts}))
        system.networks["generator"].eval()
        for optimizer in system.optimizers.values():
            optimizer.step = lambda: None
        losses = system.training_step(FABRIC, batch(), 1)
        found.append([*gradients(system, "discriminator"), *gradients(system, "generator")])
        found[-1] += list(losses.values())
    for one, four in zip(*found, strict=True):
        torch.testing.assert_close(one, four, atol=1e-5, rtol=1e-4)


def test_auxiliary_losses_are_the_papers() -> None:
    """E CE over real and generated images for the discriminator, over generated ones for the other."""
    changes = {"architecture": "dcgan", "conditioning": "auxiliary", "discriminator_norm": False}
    system, losses = stepped(**changes, classifier_weight=0.5)
    images, labels = batch()
    with torch.no_grad():
        fake = system._generate(labels, 1, 0)
        of_real, of_fake = (system._judged(x, labels)[1] for x in (images, fake))
    real, made = (functional.cross_entropy(x, labels) for x in (of_real, of_fake))
    torch.testing.assert_close(losses["discriminator_classes"], 0.5 * (real + made))
    torch.testing.assert_close(losses["generator_classes"], 0.5 * made)


def test_smoothing_penalty_and_interval() -> None:
    _, plain = stepped(objective="non-saturating")
    _, smooth = stepped(objective="non-saturating", label_smoothing=0.2)
    assert plain["discriminator_loss"] != smooth["discriminator_loss"]
    lazy = {"penalty": "r1", "penalty_interval": 2}
    assert "penalty" not in stepped(1, **lazy)[1]
    twice = stepped(2, **lazy)[1]["penalty"]
    torch.testing.assert_close(twice, 2 * stepped(2, penalty="r1")[1]["penalty"])


def test_a_run_of_biggan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(biggan, "_STANDING_PASSES", 2)
    options = {**RUN, "image_size": 16, "width": 2, "latent_dim": 6, "embedding": 4}
    options |= {"batch_size": 8, "augment": "translation", "accumulate": 2}
    whole = pf.gan.train("biggan", out=tmp_path / "whole", steps=4, **options)
    pf.gan.train("biggan", out=tmp_path / "parts", steps=3, **options)
    parts = pf.gan.train("biggan", out=tmp_path / "parts", steps=4, resume=True, **options)
    assert whole.weights.read_bytes() == parts.weights.read_bytes()
    for name in ("samples.png", "interpolation.png", "truncation.png"):
        assert (whole.path / name).is_file()
    model = pf.gan.load(whole)
    assert whole.config.classes == 10
    # The picture is what the loaded model draws.
    drawn = image_grid(model.sample(10, whole.config.seed))
    seen = np.array(Image.open(whole.samples)).astype(int)
    assert np.abs(seen - drawn).max() <= 2
    words = ["sample", str(whole.path), "--count", "3", "--truncation"]
    assert cli.main([*words, "0.5"]) == 0
    assert cli.main([*words, "-1"]) == 2
    assert "truncation must be at least 0, got -1.0" in capsys.readouterr().err


@pytest.mark.parametrize("conditioning", ["concat", "projection", "auxiliary"])
def test_a_run_of_every_conditioning(conditioning: str, tmp_path: Path) -> None:
    options = {**RUN, "image_size": 8, "width": 2, "latent_dim": 3, "batch_size": 8}
    run = pf.gan.train("cgan", out=tmp_path / "run", steps=2, conditioning=conditioning, **options)
    labels = torch.tensor([3, 3, 9])
    assert pf.gan.load(run).sample(3, 1, labels=labels).shape == (3, 1, 8, 8)


def test_labels_out_of_range_and_other_bad_input(tmp_path: Path) -> None:
    generator = big_generator().eval()
    judge = ConditionalDiscriminator(**SHAPES, width=2)
    latent, images = torch.zeros(2, 6), torch.zeros(2, 1, 16, 16)
    for labels, kind, says in (
        ([0, 3], ValueError, "labels must be at least 0 and below 3, got 3"),
        ([-1, 0], ValueError, "labels must be at least 0 and below 3, got -1"),
        ([0], ValueError, r"labels must be of shape \(2,\), got \(1,\)"),
        ([0.0, 1.0], TypeError, r"labels must be an int64 tensor, got torch\.float32"),
    ):
        wrong = torch.tensor(labels)
        for call in (
            lambda y=wrong: generator(latent, y),
            lambda y=wrong: generator.sample(2, labels=y),
            lambda y=wrong: judge(images, y),
            lambda y=wrong: BigGANDiscriminator(**SHAPES, width=2)(images, y),
            lambda y=wrong: ConditionalGenerator(**SHAPES, latent_dim=6)(latent, y),
        ):
            with pytest.raises(kind, match=says):
                call()
    with pytest.raises(ValueError, match=r"truncation must be at least 0, got -0\.5"):
        generator.sample(2, truncation=-0.5)
    with pytest.raises(ValueError, match="latent_dim must be a multiple of 3"):
        big_generator(latent_dim=7)
    with pytest.raises(ValueError, match=r"image_size must be one of 16, 32, .* got 24"):
        big_generator(image_size=24)
    for changes, says in (
        ({"conditioning": "concat"}, "conditioning of biggan must be projection"),
        ({"accumulate": 3}, "batch_size must be a multiple of accumulate"),
        ({"image_size": 8}, "image_size must be one of 16, 32"),
        ({"augment": "colour"}, "did you mean 'color'"),
        ({"orthogonal": -1.0}, "orthogonal must be at least 0"),
        ({"data": "8gaussians"}, "data must be square images"),
    ):
        with pytest.raises(ValueError, match=says):
            pf.gan.train("biggan", out=tmp_path / "run", steps=1, **changes)
    unlabelled = torch.zeros(9, 1, 16, 16)
    with pytest.raises(ValueError, match="data must have labels for a conditional model"):
        pf.gan.train("cgan", data=unlabelled, out=tmp_path / "run", steps=1)
    labelled = (unlabelled, torch.arange(9))
    with pytest.raises(ValueError, match="labels must be below classes=4, the data have 9"):
        pf.gan.train("cgan", data=labelled, out=tmp_path / "run", steps=1, classes=4)
    assert not (tmp_path / "run").exists()
    replace(PRESETS["biggan"], classes=10)


def test_arithmetic_is_not_for_generators_that_take_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"steps": 1, "batch_size": 4, "image_size": 8, "width": 2, "accelerator": "cpu"}
    run = pf.gan.train("cgan", out=tmp_path / "r", **fields)
    assert cli.main(["sample", str(run.path), "--arithmetic", "7-1"]) == 2
    assert "--arithmetic is for a GAN of latent vectors alone" in capsys.readouterr().err
