"""The Fréchet distance against closed forms, SciPy's matrix square root, and torchmetrics'
recipe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from pyfastgan.metrics import fid, frechet_distance


def with_moments(mean: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Samples whose sample mean and covariance are exactly the given ones."""
    noise = torch.randn(count, len(mean), dtype=torch.float64)
    noise = torch.linalg.qr(noise - noise.mean(0)).Q * (count - 1) ** 0.5
    values, vectors = torch.linalg.eigh(covariance)
    return mean + noise @ (vectors * values.clamp(min=0).sqrt()).T


def random_covariance(width: int, rank: int) -> Tensor:
    factor = torch.randn(width, rank, dtype=torch.float64)
    return factor @ factor.T


def by_scipy(a: Tensor, b: Tensor) -> float:
    covariances = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    mean = (a.mean(0) - b.mean(0)).square().sum().item()
    return float(mean + np.trace(covariances[0] + covariances[1] - 2 * root.real))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_commuting_gaussians_have_a_closed_form() -> None:
    """With one basis of eigenvectors, d^2 = |m_a - m_b|^2 + sum (sqrt(s_a) - sqrt(s_b))^2."""
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    spectra = torch.rand(2, 6, dtype=torch.float64) * 4
    means = torch.randn(2, 6, dtype=torch.float64)
    samples = [
        with_moments(mean, basis @ spectrum.diag() @ basis.T, count)
        for mean, spectrum, count in zip(means, spectra, (50, 80), strict=True)
    ]
    expected = (means[0] - means[1]).square().sum()
    expected += (spectra[0].sqrt() - spectra[1].sqrt()).square().sum()
    assert frechet_distance(*samples) == pytest.approx(expected.item(), rel=1e-12)


def test_two_dimensions_have_a_closed_form() -> None:
    """Without a common basis: tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)) for a 2 x 2 M = S_a S_b."""
    covariances = random_covariance(2, 2), random_covariance(2, 2)
    zero = torch.zeros(2, dtype=torch.float64)
    samples = [with_moments(zero, covariance, 30) for covariance in covariances]
    product = covariances[0] @ covariances[1]
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = covariances[0].trace() + covariances[1].trace() - 2 * root
    assert frechet_distance(*samples) == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("width", [1, 2, 17, 64])
def test_agrees_with_scipy(width: int) -> None:
    a = torch.randn(200, width, dtype=torch.float64) @ random_covariance(width, width)
    b = torch.randn(150, width, dtype=torch.float64) + 1
    expected = (
        by_scipy(a, b) if width > 1 else (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    )
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("counts", [(10, 7), (2, 2), (10, 100)], ids=str)
def test_fewer_samples_than_features(counts: tuple[int, int]) -> None:
    """Rank-deficient covariances, against the eigenvalues of the small Gram matrices in float64."""
    a, b = (torch.randn(count, 32, dtype=torch.float64) * 2 + 1 for count in counts)
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    overlap = torch.linalg.matrix_norm(centred[0] @ centred[1].T, ord="nuc")
    expected = (a.mean(0) - b.mean(0)).square().sum() - 2 * overlap
    expected += sum(x.square().sum() for x in centred)
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_a_singular_covariance_with_a_closed_form() -> None:
    """Lines in space: S = s u u^T, so that tr (S_a S_b)^(1/2) = sqrt(s_a s_b) |u_a . u_b|."""
    directions = torch.linalg.qr(torch.randn(40, 2, dtype=torch.float64)).Q.T
    u, v = directions[0], 0.6 * directions[0] + 0.8 * directions[1]
    t = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    variance = t.var().item()
    expected = variance + 4 * variance - 2 * math.sqrt(variance * 4 * variance) * 0.6
    assert frechet_distance(t * u, 2 * t * v) == pytest.approx(expected, rel=1e-12)


def test_properties() -> None:
    a, b = torch.randn(100, 8), torch.randn(90, 8) + 0.5
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, a + 3) == pytest.approx(8 * 9, rel=1e-6)
    assert frechet_distance(torch.ones(5, 3), torch.ones(5, 3)) == 0


def test_large_offsets_lose_no_accuracy() -> None:
    a, b = torch.randn(2, 100, 4, dtype=torch.float64)
    assert frechet_distance(a + 1e6, b + 1e6) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_bad_features() -> None:
    good = torch.randn(5, 3)
    with pytest.raises(TypeError, match=r"features_a must be a floating-point .* not torch\.int64"):
        frechet_distance(good.long(), good)
    with pytest.raises(ValueError, match=r"features_b must be of shape .* not \(1, 3\)"):
        frechet_distance(good, good[:1])
    with pytest.raises(ValueError, match=r"which has 3 features, not 2"):
        frechet_distance(good, good[:, :2])
    broken = good.clone()
    broken[2, 1] = math.nan
    with pytest.raises(ValueError, match="features_b must be finite"):
        frechet_distance(good, broken)


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def test_fid_names_its_extractor() -> None:
    a, b = torch.rand(30, 1, 2, 2), torch.rand(40, 1, 2, 2)
    result = fid(a, b, pixels, batch_size=7)
    assert result.value == pytest.approx(frechet_distance(pixels(a), pixels(b)))
    assert (result.extractor, result.samples) == ("pixels", (30, 40))
    assert "(pixels; 30 against 40)" in str(result)
    assert fid(a, b, nn.Flatten()).extractor == "Flatten"


def test_fid_puts_a_module_into_evaluation_mode_for_the_while() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1, momentum=1.0), nn.Flatten())
    images = torch.rand(30, 1, 2, 2)
    before = network.eval()(images * 3)
    network.train()
    assert fid(images * 3, images, network).value == pytest.approx(
        frechet_distance(before.detach(), network.eval()(images).detach())
    )
    network.train()
    fid(images, images, network)
    assert network.training
    assert not network[0].running_mean.any()


def test_bad_fid_arguments() -> None:
    images = torch.rand(4, 1, 2, 2)
    with pytest.raises(ValueError, match="images_b must hold at least two images, not 1"):
        fid(images, images[:1], pixels)
    with pytest.raises(ValueError, match=r"extractor must give features .* not \(4, 1, 2, 2\)"):
        fid(images, images, nn.Identity())
