"""A VQ-VAE around `VectorQuantize`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from same import check
from torch import nn
from vector_quantize_pytorch import VectorQuantize

import pyfastgan as pf


class VQVAE(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.encode = nn.Conv2d(3, 8, 4, 2, 1)
        self.quantize = VectorQuantize(dim=8, codebook_size=24, accept_image_fmap=True, **options)
        self.decode = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, x):
        quantized, index, loss = self.quantize(self.encode(x))
        return self.decode(quantized), index, loss


OPTIONS = {
    "averages": {},
    "straight through": {"rotation_trick": False, "decay": 0.9, "eps": 1e-3},
    "learned": {"learnable_codebook": True, "ema_update": False},
    "dead codes": {"threshold_ema_dead_code": 2},
    "k-means, projected": {"kmeans_init": True, "kmeans_iters": 3, "codebook_dim": 4},
    "frozen": {"freeze_codebook": True, "commitment_weight": 0.0},
}


def images(seed=0):
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_vqvae(name):
    torch.manual_seed(0)
    model = VQVAE(**OPTIONS[name])
    x = images()

    def loss(m):
        torch.manual_seed(5)  # of dead codes and of k-means
        out, _, commitment = m(x)
        return F.mse_loss(out, x) + commitment.sum()

    check(model, loss, {"VectorQuantize"}, pickles=False)


@pytest.mark.parametrize("shape", [(5, 8), (4, 7, 8)])
@pytest.mark.parametrize("last", [True, False])
def test_sequences_and_single_vectors(shape, last):
    torch.manual_seed(0)
    model = VectorQuantize(dim=8, codebook_size=16, channel_last=last)
    fast = copy.deepcopy(model)
    assert pf.accelerate(fast).replaced
    x = torch.randn(shape)
    if len(shape) == 3 and not last:
        x = x.mT.contiguous()
    for training in (True, False):
        outputs = []
        for m in (model, fast):
            m.train(training)
            leaf = x.clone().requires_grad_()
            quantized, index, loss, parts = m(leaf, return_loss_breakdown=True)
            gradient = torch.zeros_like(x)
            if training:
                (gradient,) = torch.autograd.grad((quantized * x.sin()).sum() + loss.sum(), leaf)
            outputs.append((quantized, index, loss, *parts, gradient))
        for ours, theirs in zip(*outputs[::-1], strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for key, t in model.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[key], t, rtol=1e-5, atol=1e-6)


def test_what_the_library_serves_itself():
    """Masks, given indices and the like."""
    torch.manual_seed(0)
    model = VectorQuantize(dim=8, codebook_size=16)
    fast = copy.deepcopy(model)
    pf.accelerate(fast)
    x = torch.randn(3, 6, 8)
    calls = (
        {"mask": torch.rand(3, 6) > 0.4},
        {"indices": torch.randint(0, 16, (3, 6))},
        {"topk": 2},
    )
    for options in calls:
        for ours, theirs in zip(fast(x, **options), model(x, **options), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_vector_opposite_to_its_code():
    """The rotation has no direction there; the library's own formula serves the batch."""
    torch.manual_seed(0)
    model = VectorQuantize(dim=4, codebook_size=1)
    fast = copy.deepcopy(model)
    pf.accelerate(fast)
    code = model.codebook[0].clone()
    results = []
    for m in (model, fast):
        leaf = torch.stack((-code, 2 * code, torch.zeros(4))).requires_grad_()
        quantized, _, loss = m(leaf)
        (gradient,) = torch.autograd.grad(quantized.square().sum() + loss, leaf)
        results.append((quantized, gradient))
    for ours, theirs in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_cosine_sim": True}, "cosine similarity"),
        ({"heads": 2}, "several heads"),
        ({"stochastic_sample_codes": True}, "sampled codes"),
        ({"affine_param": True}, "affine parameters"),
        ({"orthogonal_reg_weight": 1.0}, "an orthogonal loss"),
        ({"codebook_diversity_loss_weight": 1.0}, "a diversity loss"),
        ({"commitment_use_cross_entropy_loss": True}, "a cross-entropy commitment"),
        (
            {"learnable_codebook": True, "ema_update": False, "sync_update_v": 0.1},
            "synchronous updates",
        ),
    ],
)
def test_what_is_left_alone(options, reason):
    (skipped,) = pf.accelerate(VectorQuantize(dim=8, codebook_size=16, **options)).skipped
    assert reason in skipped.reason
