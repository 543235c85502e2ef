"""Progressive growing: fading in, the layers, the phases of a run, bad input."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyfastgan as pf
from pyfastgan.gan import GrowingDiscriminator, GrowingGenerator, ProgressiveConfig, ProgressiveGAN
from pyfastgan.gan.progressive import FirstMap, ScaledConv, pixel_norm
from pyfastgan.gan.progressive_system import phase_at, shrunk
from pyfastgan.training.checkpoint import load_checkpoint

RUN = {
    "image_size": 16,
    "width": 8,
    "latent_dim": 4,
    "batch_size": 4,
    "phase_steps": 2,
    "accelerator": "cpu",
    "log_every": 1,
    "sample_every": 0,
    "sample_count": 4,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def networks() -> tuple[GrowingGenerator, GrowingDiscriminator]:
    generator = GrowingGenerator(16, channels=3, width=8, latent_dim=5)
    judge = GrowingDiscriminator(16, channels=3, width=8)
    for network in (generator, judge):
        for name, p in network.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(p)
    return generator, judge


def copied(network: nn.Module, size: int) -> nn.Module:
    """A network of a smaller size with the weights of the larger one."""
    kind = type(network)
    options = {"latent_dim": 5} if kind is GrowingGenerator else {}
    small = kind(size, channels=3, width=8, **options)
    wanted, held = small.state_dict(), network.state_dict()
    small.load_state_dict({k: held[k] if k != "phase" else v for k, v in wanted.items()})
    return small


@pytest.mark.parametrize("resolution", [8, 16])
def test_fading_in_begins_with_the_smaller_and_ends_with_the_larger_network(
    resolution: int,
) -> None:
    generator, judge = networks()
    latent = torch.randn(4, 5)
    smaller, larger = (copied(generator, size) for size in (resolution // 2, resolution))
    with torch.no_grad():
        of_smaller, of_larger = doubled(smaller(latent)), larger(latent)
        for alpha in (0.0, 0.3, 1.0):
            expected = (1 - alpha) * of_smaller + alpha * of_larger
            torch.testing.assert_close(generator(latent, resolution, alpha), expected)
        assert (of_smaller - of_larger).abs().max() > 0.1

        images = torch.randn(4, 3, resolution, resolution)
        smaller, larger = (copied(judge, size) for size in (resolution // 2, resolution))
        of_smaller = smaller(functional.avg_pool2d(images, 2))
        torch.testing.assert_close(judge(images, 0.0), of_smaller)
        torch.testing.assert_close(judge(images, 1.0), larger(images))
        assert (of_smaller - larger(images)).abs().max() > 0.1
        assert not torch.allclose(judge(images, 0.3), judge(images, 0.6))


def test_equalised_learning_rate() -> None:
    """Weights are as wide as N(0, 1), results as wide as their inputs; the gradient of a weight is
    scaled as the weight is."""
    layer = ScaledConv(64, 64, 3, act="linear")
    x = torch.randn(8, 64, 12, 12)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.02)
    inner = layer(x)[..., 1:-1, 1:-1]
    assert inner.std().item() == pytest.approx(math.sqrt(2), rel=0.05)
    by_hand = functional.conv2d(x, layer.weight * math.sqrt(2 / (64 * 9)), padding=1)
    torch.testing.assert_close(layer(x), by_hand)
    relu = ScaledConv(3, 4, 1)
    nn.init.normal_(relu.bias)
    x = torch.randn(2, 3, 4, 4)
    by_hand = functional.conv2d(x, relu.weight * math.sqrt(2 / 3), relu.bias)
    torch.testing.assert_close(relu(x), functional.leaky_relu(by_hand, 0.2))


def test_the_first_map_is_a_padded_convolution() -> None:
    layer = FirstMap(5, 3)
    x = torch.randn(2, 5)
    weight = layer.weight.permute(1, 0, 2, 3).flip(2, 3) * layer.scale
    y = functional.conv2d(x[..., None, None], weight, padding=3)
    torch.testing.assert_close(layer(x), functional.leaky_relu(y, 0.2))
    assert layer.scale == pytest.approx(math.sqrt(2 / (5 * 16)))


def test_pixel_norm() -> None:
    x = torch.randn(2, 6, 3, 3)
    length = x.norm(dim=1, keepdim=True) / math.sqrt(6)
    torch.testing.assert_close(pixel_norm(x), x / length)
    assert not pixel_norm(torch.zeros(1, 4)).any()


def test_minibatch_std_is_the_papers() -> None:
    layer = pf.nn.MinibatchStd(4)
    x = torch.randn(8, 3, 2, 2)
    out = layer(x)
    assert torch.equal(out[:, :3], x)
    for start in range(2):
        group = x[start::2]
        spread = group.std(0, correction=0).mean()
        torch.testing.assert_close(out[start::2, 3], spread.expand(4, 2, 2))
    several = pf.nn.MinibatchStd(8, features=3)(x)[0, 3:, 0, 0]
    torch.testing.assert_close(several, x.std(0, correction=0).flatten(1).mean(1))
    # Of 6 samples a group has 3, the largest divisor up to 4; one alone differs from nobody.
    six = layer(x[:6])[:, 3, 0, 0]
    torch.testing.assert_close(six[0], x[[0, 2, 4]].std(0, correction=0).mean())
    torch.testing.assert_close(layer(x[:1])[:, 3], torch.full((1, 2, 2), 1e-4))
    assert layer(x[:0]).shape == (0, 4, 2, 2)
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)
    with pytest.raises(ValueError, match="C a multiple of features=2"):
        pf.nn.MinibatchStd(4, features=2)(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        pf.nn.MinibatchStd(0)


def test_the_phases_follow_each_other() -> None:
    seen = [phase_at(step, 2, 16) for step in range(1, 13)]
    steady = [(r, 2, 2) for r in (4, 4)]
    expected = [*steady, (8, 1, 2), (8, 2, 2), (8, 2, 2), (8, 2, 2)]
    expected += [(16, 1, 2), (16, 2, 2), (16, 2, 2), (16, 2, 2), (16, 2, 2), (16, 2, 2)]
    assert seen == expected
    assert phase_at(100, 2, 4) == (4, 2, 2)


def test_real_images_fade_in_as_well() -> None:
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(shrunk(images, 4, 1.0), functional.avg_pool2d(images, 4))
    fine, coarse = functional.avg_pool2d(images, 2), doubled(functional.avg_pool2d(images, 4))
    torch.testing.assert_close(shrunk(images, 8, 0.25), 0.25 * fine + 0.75 * coarse)
    assert torch.equal(shrunk(images, 16, 1.0), images)


def test_only_the_layers_in_use_learn() -> None:
    system = ProgressiveGAN(ProgressiveConfig(**{**RUN, "channels": 1}))
    generator = system.networks["generator"]
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    from types import SimpleNamespace

    fabric = SimpleNamespace(
        global_rank=0,
        backward=lambda loss: loss.backward(),
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )
    system.training_step(fabric, (torch.rand(4, 1, 16, 16) * 2 - 1,), 3)  # 8 x 8, alpha 1/2
    moved = {n for n, p in generator.named_parameters() if not torch.equal(p, before[n])}
    unused = {n for n in before if n.startswith(("blocks.1", "to_image.2"))}
    assert unused
    assert moved == set(before) - unused
    assert system.phase == "8x8, fading in, alpha 0.5000, step 3"
    assert generator.current() == (8, 0.5)


def test_a_run_goes_on_across_resolutions(tmp_path: Path) -> None:
    """Stopped within a fade and resumed: the same bits, and the checkpoint names the phase."""
    whole = pf.gan.train("progan", out=tmp_path / "whole", steps=9, **RUN)
    parts = pf.gan.train("progan", out=tmp_path / "parts", steps=3, **RUN)
    assert load_checkpoint(parts.checkpoint)["phase"] == "8x8, fading in, alpha 0.5000, step 3"
    drawn = pf.gan.load(parts)
    assert drawn.current() == (8, 0.5)
    assert drawn.sample(3, 1).shape == (3, 1, 8, 8)
    parts = pf.gan.train("progan", out=tmp_path / "parts", steps=9, resume=True, **RUN)
    assert whole.weights.read_bytes() == parts.weights.read_bytes()
    assert load_checkpoint(parts.checkpoint)["phase"] == "16x16, faded in, step 9"
    assert pf.gan.load(parts).sample(3, 1).shape == (3, 1, 16, 16)
    assert [row["resolution"] for row in whole.history] == [4, 4, 8, 8, 8, 8, 16, 16, 16]
    assert (whole.path / "interpolation.png").is_file()


def test_an_interruption_names_the_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ProgressiveGAN.training_step

    def stop(self, fabric, batch, number):
        if number == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, fabric, batch, number)

    monkeypatch.setattr(ProgressiveGAN, "training_step", stop)
    with pytest.raises(KeyboardInterrupt, match=r"step 3 of 5 \(8x8, fading in"):
        pf.gan.train("progan", out=tmp_path / "run", steps=5, **RUN)


def test_bad_input(tmp_path: Path) -> None:
    generator, judge = networks()
    latent = torch.zeros(2, 5)
    for call, says in (
        (lambda: GrowingGenerator(24), "image_size must be a power of two, got 24"),
        (lambda: GrowingDiscriminator(2), "image_size must be at least 4, got 2"),
        (lambda: GrowingGenerator(1024, width=16), "width must be at least 32, got 16"),
        (lambda: generator(latent, 12), "resolution must be a power of two, got 12"),
        (lambda: generator(latent, 32), "resolution must be at most 16, got 32"),
        (lambda: generator(latent[:, :4]), r"latent must be of shape \(N, 5\)"),
        (lambda: judge(torch.zeros(2, 3, 8, 4)), "images must be square"),
        (lambda: judge(torch.zeros(2, 1, 8, 8)), r"images must be square, \(N, 3, H, H\)"),
        (lambda: judge(torch.zeros(2, 3, 12, 12)), "resolution must be a power of two, got 12"),
        (lambda: generator.sample(2, truncation=-1.0), "truncation must be at least 0"),
        (lambda: ProgressiveConfig(image_size=48), "image_size must be a power of two, got 48"),
        (lambda: ProgressiveConfig(phase_steps=0), "phase_steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(ValueError, match="data must be square images of 16 pixels"):
        pf.gan.train("progan", data=torch.zeros(9, 1, 8, 8), out=tmp_path / "run", **RUN)
    assert not (tmp_path / "run").exists()
