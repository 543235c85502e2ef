"""The bounds against a model whose log p(x) is known, and the arguments."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyfastgan.vae import VAE, importance_bound
from pyfastgan.vae.networks import decoder, encoder

D, X = 3, 5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def linear_gaussian() -> tuple[VAE, MultivariateNormal, Tensor, Tensor]:
    """x = Wz + b + noise: the model with an encoder that is somewhat wrong, the exact p(x), the
    posterior's covariance, and the matrix that gives its mean."""
    down, up = nn.Linear(X, 2 * D).double(), nn.Linear(D, X).double()
    model = VAE(down, up, latent_dim=D, likelihood="gaussian").double()
    with torch.no_grad():
        model.logvar.fill_(-0.7)
        up.bias.uniform_(-1, 1)
        w, variance = up.weight, model.logvar.exp()
        precision = torch.eye(D).double() + w.T @ w / variance
        covariance = precision.inverse()
        gain = covariance @ w.T / variance
        down.weight[:D] = gain + 0.15 * torch.randn(D, X)
        down.bias[:D] = -gain @ up.bias + 0.1
        down.weight[D:] *= 0.2
        down.bias[D:] = covariance.diagonal().log() + 0.3
        marginal = MultivariateNormal(up.bias, w @ w.T + variance * torch.eye(X).double())
    return model, marginal, covariance, gain


def test_the_gap_of_the_elbo_is_the_divergence_from_the_posterior() -> None:
    model, marginal, covariance, gain = linear_gaussian()
    x = marginal.sample((4,))
    with torch.no_grad():
        mean, logvar = model.encode(x)
        count = 40_000
        nll, kl = model(x.repeat_interleave(count, 0), seed=1)
        one = (-nll - kl).view(4, count)
        elbo, error = one.mean(1), one.std(1) / math.sqrt(count)
        posterior = MultivariateNormal((x - model.decoder.bias) @ gain.T, covariance)
        q = MultivariateNormal(mean, torch.diag_embed(logvar.exp()))
        gap = kl_divergence(q, posterior)
        assert (gap > 0.05).all()
        assert ((marginal.log_prob(x) - elbo - gap).abs() < 4 * error).all()
        torch.testing.assert_close(
            kl.view(4, count)[:, 0],
            kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1),
        )


def test_the_importance_bound_rises_to_the_exact_likelihood() -> None:
    model, marginal, *_ = linear_gaussian()
    x, repeats = marginal.sample((3,)), 4000
    truth = marginal.log_prob(x)
    means = []
    for k in (1, 2, 8, 64):
        bound = -model.nll(x.repeat_interleave(repeats, 0), k, seed=k)
        means.append(bound.view(3, repeats).mean(1))
    assert all((b > a).all() for a, b in pairwise(means))
    assert (means[-1] < truth + 0.01).all()
    assert ((truth - means[-1]) < 0.1 * (truth - means[0])).all()
    torch.testing.assert_close(-model.nll(x, 200_000), truth, atol=0.01, rtol=0)


def test_importance_weights_are_those_of_the_densities() -> None:
    """log w from torch.distributions, with the latent vectors that the noise says."""
    import pyfastgan as pf

    model, marginal, *_ = linear_gaussian()
    x = marginal.sample((4,))
    nll, ratio = model(x, samples=6, seed=5, stream=2, sample_offset=7)
    mean, logvar = model.encode(x)
    e = pf.ops.random_normal((4, 6, D), 5, stream=2, sample_offset=7, dtype=torch.float64)
    q = Normal(mean[:, None], (0.5 * logvar).exp()[:, None])
    z = q.mean + q.stddev * e
    likelihood = Normal(model.decoder(z), (0.5 * model.logvar).exp())
    log_p = likelihood.log_prob(x[:, None]).sum(2) + Normal(0.0, 1.0).log_prob(z).sum(2)
    log_w = log_p - q.log_prob(z).sum(2)
    torch.testing.assert_close(-nll - ratio, log_w)
    torch.testing.assert_close(importance_bound(nll, ratio), log_w.exp().mean(1).log())


def test_the_gradient_is_that_of_the_bound_itself() -> None:
    """Against central differences of the bound under the same noise."""
    model, marginal, *_ = linear_gaussian()
    x = marginal.sample((4,))

    def bound() -> Tensor:
        return importance_bound(*model(x, samples=3, seed=1)).mean()

    parameters = list(model.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(bound(), parameters)):
        with torch.no_grad():
            flat = parameter.view(-1)
            for i in range(0, flat.numel(), 3):
                value, values = flat[i].item(), []
                for step in (1e-5, -1e-5):
                    flat[i] = value + step
                    values.append(bound().item())
                flat[i] = value
                slope = (values[0] - values[1]) / 2e-5
                assert abs(gradient.reshape(-1)[i].item() - slope) < 1e-7


def test_an_estimate_does_not_depend_on_the_batch() -> None:
    model, marginal, *_ = linear_gaussian()
    x = marginal.sample((9,))
    whole = model.nll(x, 1000)
    assert torch.equal(whole[5:7], model.nll(x[5:7], 1000, sample_offset=5))
    assert model.nll(x[:0]).shape == (0,)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28)])
def test_shapes_and_labels_of_the_networks(kind: str, channels: int, size: int) -> None:
    shape = (channels, size, size)
    model = VAE(
        encoder(kind, shape, 8, 6, 3), decoder(kind, shape, 4, 6, 3), latent_dim=4, classes=3
    )
    x, labels = (torch.rand(5, *shape) > 0.5).float(), torch.tensor([0, 1, 2, 1, 0])
    nll, kl = model(x, labels, seed=1)
    assert nll.shape == kl.shape == (5,)
    changed = (labels + 1) % 3
    assert not torch.equal(model.encode(x, labels)[0], model.encode(x, changed)[0])
    z = model.latents(5, 1)
    assert not torch.equal(model.decode(z, labels), model.decode(z, changed))
    assert model.sample(4, 1).shape == (4, *shape)
    torch.testing.assert_close(model.sample(4, 1), model.decode(z[:4], torch.tensor([0, 1, 2, 0])))
    assert model.nll(x, 3, labels).shape == (5,)


def test_what_is_observed() -> None:
    """Bernoulli: ones as often as the image is bright. Gaussian: the byte rounds back to the image."""
    image = torch.linspace(-1, 1, 256).expand(2000, 256)
    bits = VAE(nn.Identity(), nn.Identity(), latent_dim=1).observe(image, 3)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert (bits.mean(0) - torch.linspace(0, 1, 256)).abs().max() < 0.06
    assert not bits[:, 0].any()
    assert bits[:, -1].all()
    model = VAE(nn.Identity(), nn.Identity(), latent_dim=1, likelihood="gaussian")
    moved = model.observe(image, 3)
    torch.testing.assert_close(((moved + 1) * 127.5).round(), (image + 1) * 127.5)
    assert abs((moved - image).std().item() * 127.5 - 1 / math.sqrt(12)) < 0.01


def test_bits_per_dim_of_uniform_bytes_are_eight() -> None:
    """A uniform density on [-1, 1] has log 2 nats a pixel: 256 values, but for the half steps at the
    ends."""
    model = VAE(nn.Identity(), nn.Identity(), latent_dim=1, likelihood="gaussian")
    assert abs(model.bits_per_dim(torch.tensor(10 * math.log(2 + 1 / 127.5)), 10) - 8) < 1e-6
    model = VAE(nn.Identity(), nn.Identity(), latent_dim=1)
    assert abs(model.bits_per_dim(torch.tensor(10 * math.log(2)), 10) - 1) < 1e-6


def test_wrong_arguments() -> None:
    nets = nn.Linear(4, 4), nn.Linear(2, 4)
    with pytest.raises(ValueError, match="likelihood"):
        VAE(*nets, latent_dim=2, likelihood="poisson")
    with pytest.raises(ValueError, match="latent_dim must be at least 1"):
        VAE(*nets, latent_dim=0)
    model, x, labels = VAE(*nets, latent_dim=2), torch.zeros(3, 4), torch.zeros(3).long()
    with pytest.raises(ValueError, match="samples must be at least 1"):
        model(x, samples=0)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        model.nll(x, 0)
    with pytest.raises(ValueError, match="labels need a conditional model"):
        model(x, labels)
    model = VAE(*nets, latent_dim=2, classes=2)
    with pytest.raises(ValueError, match="labels are needed"):
        model(x)
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(3,\)"):
        model(x, labels[:2])
    with pytest.raises(ValueError, match="4, 5, 6 or 7 pixels doubled"):
        encoder("conv", (1, 18, 18), 2, 4)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        model(x, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_images_out_of_range(likelihood: str) -> None:
    model = VAE(nn.Flatten(), nn.Flatten(), latent_dim=2, likelihood=likelihood)
    images = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)
    assert model.observe(images, 0).shape == images.shape
    for bad in (images * 255, images * math.nan):
        with pytest.raises(
            ValueError, match=r"images must lie in \[-1, 1\], got (-255 to 255|nan)"
        ):
            model.observe(bad, 0)
