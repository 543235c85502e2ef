"""The mixture of discretised logistics: it sums to one, is the paper's formula, stays finite, and is what is drawn."""

import math

import pytest
import torch

import pyfastgan as pf
from pyfastgan.ops._discretized_mix_logistic_calls import _published, _spread
from pyfastgan.ops._registry import ops
from pyfastgan.testing import backends

BACKENDS = backends(ops()["discretized_mix_logistic"])
pytestmark = pytest.mark.parametrize("backend", BACKENDS)
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def parameters(*shape, planes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return _spread(planes)(torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_masses_of_all_values_sum_to_one(backend, dtype):
    """One channel over its 256 values; the third of three given the others, a ratio of two sums."""
    params = parameters(1, 12, 5, planes=3, dtype=dtype).expand(256, 12, 5)
    x = LEVELS.to(dtype)[:, None, None].expand(256, 1, 5)
    with pf.use_backend(backend):
        nll = torch.stack(
            [pf.ops.discretized_mix_logistic(x[..., k], params[..., k]) for k in range(5)]
        )
        torch.testing.assert_close(
            (-nll.double()).exp().sum(1), torch.ones(5).double(), rtol=1e-5, atol=0
        )
        color = parameters(1, 10, planes=10, dtype=dtype).expand(256, 10)
        x = torch.stack((torch.full((256,), 0.2), torch.full((256,), -0.3), LEVELS), 1).to(dtype)
        joint = (-pf.ops.discretized_mix_logistic(x, color).double()).exp().sum()
        # The third channel's scale and shift do not matter to the other two.
        color = color.clone()
        color[:, [7, 8]] = torch.tensor([0.3, 0.0], dtype=dtype)
        again = (-pf.ops.discretized_mix_logistic(x, color).double()).exp().sum()
    torch.testing.assert_close(joint, again, rtol=1e-4, atol=0)


def test_against_the_paper_s_formula(backend):
    """Differences of cumulative distributions in float64, a component and a pixel at a time."""
    params, mixtures = parameters(6, 40, planes=10), 4
    x = LEVELS[
        torch.tensor(
            [[0, 128, 255], [127, 1, 254], [255, 255, 0], [3, 77, 200], [90, 0, 9], [128, 129, 130]]
        )
    ]

    def mass(value, mean, log_scale):
        def cdf(v):
            return torch.sigmoid((v - mean) / log_scale.clamp(min=-7).exp())

        upper = cdf(value + 1 / 255) if value < 0.999 else 1.0
        return upper - (cdf(value - 1 / 255) if value > -0.999 else 0.0)

    expected = []
    for row, p in zip(x, params):
        weights, rest = p[:mixtures].softmax(0), p[mixtures:].reshape(3, 3, mixtures)
        total = 0.0
        for m in range(mixtures):
            mean, scale, c = rest[:, 0, m], rest[:, 1, m], rest[:, 2, m].tanh()
            means = mean[0], mean[1] + c[0] * row[0], mean[2] + c[1] * row[0] + c[2] * row[1]
            total += weights[m] * math.prod(mass(row[k], means[k], scale[k]) for k in range(3))
        expected.append(-total.log())
    with pf.use_backend(backend):
        nll = pf.ops.discretized_mix_logistic(x, params)
        torch.testing.assert_close(nll, torch.stack(expected), rtol=1e-6, atol=1e-6)
        # The code that was published agrees where a mass is not below 1e-5.
        near = params.clone().unflatten(1, (10, 4))
        near[:, [1, 4, 7]] = x[:, :, None]
        near[:, [3, 6, 9]] = 0
        near = near.flatten(1)
        x, near = x[..., None], near[..., None]
        torch.testing.assert_close(pf.ops.discretized_mix_logistic(x, near), _published(x, near))


def test_large_parameters_stay_finite(backend):
    generator = torch.Generator().manual_seed(1)
    x = LEVELS.float()[torch.randint(0, 256, (40, 3, 7), generator=generator)]
    params = (50 * torch.randn(40, 30, 7, generator=generator)).requires_grad_()
    with pf.use_backend(backend):
        nll = pf.ops.discretized_mix_logistic(x, params)
        (slope,) = torch.autograd.grad(nll.sum(), params)
    assert nll.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_have_the_measured_distribution(backend, channels):
    """Frequencies of the first channel, and the mean likelihood against the entropy of what was drawn."""
    planes, n = {1: 3, 3: 10}[channels], 20_000
    params = parameters(1, 2 * planes, planes=planes, dtype=torch.float32).expand(n, 2 * planes)
    with pf.use_backend(backend):
        x = pf.ops.sample_discretized_mix_logistic(params, channels, 3)
        nll = pf.ops.discretized_mix_logistic(x, params)
    assert x.shape == (n, channels)
    assert torch.equal(((x + 1) * 127.5).round() / 127.5 - 1, x)
    # E[1 / p(x)] over what is drawn is the number of images with p > 0; E[q / p] = 1 for any q, here the
    # distribution with wider scales.
    wide = params.clone()
    start = 2 + 2
    for c in range(channels):
        at = start + c * (6 if channels == 3 else 4)
        wide[:, at : at + 2] += 0.1
    with pf.use_backend(backend):
        ratio = (nll - pf.ops.discretized_mix_logistic(x, wide)).double().exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(n)
    assert ratio.std() > 0.01


def test_wrong_samples_are_refused(backend):
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        pf.ops.sample_discretized_mix_logistic(torch.zeros(1, 10), 2)
    with pytest.raises(ValueError, match="params must have shape"):
        pf.ops.sample_discretized_mix_logistic(torch.zeros(1, 12), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("away", [1e3, 1e8, 1e20])
def test_shares_of_components_sum_to_one_however_far_they_are(backend, away, dtype):
    """Where a log-mass has no digits for a sum of masses, gradients of logits still add up to zero."""
    params = parameters(2, 40, 5, planes=10, dtype=dtype)
    params[:, 4:8] += away  # the means of the first channel
    params.requires_grad_()
    x = LEVELS[torch.arange(30) * 8].view(2, 3, 5).to(dtype)
    with pf.use_backend(backend):
        nll = pf.ops.discretized_mix_logistic(x, params)
        (grad,) = torch.autograd.grad(nll.sum(), params)
    assert grad[:, :4].abs().max() > 0.1
    torch.testing.assert_close(
        grad[:, :4].sum(1), torch.zeros(2, 5, dtype=dtype), rtol=0, atol=3e-6
    )
