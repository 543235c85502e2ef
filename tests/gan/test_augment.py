"""Differentiable augmentation, softened labels and truncated latent vectors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor

import pyfastgan as pf
from pyfastgan.gan import (
    GANConfig,
    Generator,
    diff_augment,
    discriminator_loss,
    draw_normal,
)
from pyfastgan.gan.augment import smoothing_loss

COUNT = 400


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(COUNT, 3, 16, 16) * 2 - 1


def test_brightness_and_contrast_are_drawn_as_published(images: Tensor) -> None:
    """An even grey image shows the brightness alone; a grey one about its mean the contrast too."""
    grey = torch.zeros(COUNT, 3, 8, 8)
    by = diff_augment(grey, "color", seed=1).mean((1, 2, 3))
    assert scipy.stats.kstest(by + 0.5, "uniform").pvalue > 0.01
    wave = torch.tensor([-0.5, 0.5]).repeat(4).expand(COUNT, 3, 8, 8)
    out = diff_augment(wave, "color", seed=1)
    contrast = out[..., 1].mean((1, 2)) - out[..., 0].mean((1, 2))
    assert scipy.stats.kstest(contrast - 0.5, "uniform").pvalue > 0.01
    # Saturation: the distance of a pixel's channels from their mean, with the contrast divided out.
    tinted = wave + torch.tensor([0.25, 0.0, -0.25])[:, None, None]
    out = diff_augment(tinted, "color", seed=1)
    saturation = (out[:, 0] - out[:, 2]).mean((1, 2)) / 0.5 / contrast
    assert scipy.stats.kstest(saturation / 2, "uniform").pvalue > 0.01


def test_translation_moves_by_whole_pixels_onto_zeros(images: Tensor) -> None:
    out = diff_augment(images, "translation", seed=2)
    seen = []
    for before, after in zip(images, out, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        shifts = [(i, j) for i in range(5) for j in range(5)]
        fits = [s for s in shifts if torch.equal(padded[:, s[0] :, s[1] :][:, :16, :16], after)]
        assert len(fits) == 1
        seen += fits
    counts = torch.tensor([seen.count((i, j)) for i in range(5) for j in range(5)])
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_cutout_removes_a_square_of_half_the_size(images: Tensor) -> None:
    out = diff_augment(images.clamp(min=0.1), "cutout", seed=3)
    gone = (out == 0).all(1)
    kept = images.clamp(min=0.1)
    assert torch.equal(out[~gone[:, None].expand_as(out)], kept[~gone[:, None].expand_as(out)])
    heights, widths = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), heights * widths), "rectangles"
    # Its middle lies in 0..16: cut off at the edge to 4 pixels at least.
    assert sorted({*heights.tolist()}) == [4, 5, 6, 7, 8]
    assert (heights == 8).float().mean() == pytest.approx(9 / 17, abs=4 * 0.5 / COUNT**0.5)


def test_an_image_keeps_its_changes_wherever_it_stands(images: Tensor) -> None:
    whole = diff_augment(images, seed=4, stream=7)
    part = diff_augment(images[100:110], seed=4, stream=7, sample_offset=100)
    torch.testing.assert_close(part, whole[100:110])
    assert not torch.equal(whole, diff_augment(images, seed=4, stream=8))


def test_augmentation_is_differentiable_twice() -> None:
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: diff_augment(t, seed=1), x)
    assert torch.autograd.gradgradcheck(lambda t: diff_augment(t, seed=1), x)


def test_bad_policies_and_images() -> None:
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"augment must be one of .* did you mean 'color'"):
        diff_augment(images, "colour")
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.uint8"):
        diff_augment(images.byte())
    with pytest.raises(ValueError, match=r"must be \(N, C, H, W\), got shape \(2, 3, 8\)"):
        diff_augment(images[..., 0])
    with pytest.raises(ValueError, match="augment is for images"):
        GANConfig(architecture="mlp", augment="color")


def test_smoothed_labels_are_the_losses_of_other_labels() -> None:
    real, fake, s = torch.randn(50), torch.randn(50), 0.1
    logistic = torch.nn.functional.binary_cross_entropy_with_logits
    expected = logistic(real, torch.full_like(real, 1 - s)) + logistic(fake, torch.zeros(50))
    found = discriminator_loss("non-saturating", real, fake) + smoothing_loss(s, real)
    torch.testing.assert_close(found, expected)
    expected = ((real - (1 - s)).square() / 2 + fake.square() / 2).mean()
    constant = s - s * s / 2
    found = discriminator_loss("least-squares", real, fake) + smoothing_loss(s, real) - constant
    torch.testing.assert_close(found, expected)


def test_smoothing_is_refused_where_there_are_no_labels() -> None:
    with pytest.raises(ValueError, match="needs an objective with labels"):
        GANConfig(objective="hinge", label_smoothing=0.1)
    with pytest.raises(ValueError, match="label_smoothing must be below 1, got 1"):
        GANConfig(label_smoothing=1.0)
    with pytest.raises(ValueError, match="label_smoothing must be at least 0"):
        GANConfig(label_smoothing=-0.1)
    with pytest.raises(ValueError, match="label_smoothing needs penalty none, got 'r1'"):
        GANConfig(label_smoothing=0.1, penalty="r1")


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_truncated_normals_are_those_of_the_textbook(threshold: float) -> None:
    drawn = draw_normal((4000, 5), 0, truncation=threshold).flatten()
    assert drawn.abs().max() <= threshold
    truncated = scipy.stats.truncnorm(-threshold, threshold)
    assert scipy.stats.kstest(drawn.numpy(), truncated.cdf).pvalue > 0.01


def test_no_truncation_and_none_at_all() -> None:
    assert torch.equal(draw_normal((3, 4), 5), pf.ops.random_normal((3, 4), 5))
    assert not draw_normal((3, 4), 5, truncation=0).any()
    far = draw_normal((20_000,), 1, truncation=40.0)
    assert scipy.stats.kstest(far.numpy(), "norm").pvalue > 0.01
    for wrong, kind in ((-0.1, ValueError), (math.inf, ValueError), ("1", TypeError)):
        with pytest.raises(kind, match="truncation must be"):
            Generator(8, width=2).sample(1, 0, truncation=wrong)


def test_a_dcgan_trains_on_augmented_images_and_softened_labels(tmp_path: Path) -> None:
    run = pf.gan.train(
        "dcgan",
        out=tmp_path / "run",
        steps=3,
        width=4,
        image_size=8,
        batch_size=8,
        augment="translation,cutout",
        label_smoothing=0.1,
        accelerator="cpu",
        log_every=1,
    )
    plain = pf.gan.train(run.config, out=tmp_path / "plain", augment="none", label_smoothing=0.0)
    assert run.history[0]["discriminator_loss"] != plain.history[0]["discriminator_loss"]
