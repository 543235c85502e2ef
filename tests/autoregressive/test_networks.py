"""Autoregressive networks: what each pixel sees, probabilities that sum to 1, and cached sampling."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from pyfastgan.autoregressive import (
    GatedPixelCNN,
    LogisticMixture,
    MaskedConv2d,
    PixelCNN,
    Softmax,
    TwoLevelPrior,
)
from pyfastgan.autoregressive.network import CausalNetwork
from pyfastgan.ops import discretized_mix_logistic

# Few layers with small kernels, whose reach ends within the image; the attention's is all before.
SMALL = {"layers": 2, "width": 8, "kernel_size": 3, "first_kernel_size": 5}
SOFTMAX = Softmax(5)
NETWORKS = {
    "masked": (PixelCNN, {}),
    "gated": (GatedPixelCNN, {}),
    "attention": (GatedPixelCNN, {"attention": 1}),
}
every_network = pytest.mark.parametrize("kind", NETWORKS)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(kind: str, likelihood=SOFTMAX, shape=(6, 7), **changes) -> CausalNetwork:
    cls, extra = NETWORKS[kind]
    made = cls(likelihood, shape, **{**SMALL, **extra, **changes})
    for name, parameter in made.named_parameters():
        if "condition" in name:
            nn.init.normal_(parameter)  # as after training, so that classes matter
    return made


def random_values(net: CausalNetwork, count: int) -> Tensor:
    height, width = net.shape
    if isinstance(net.likelihood, Softmax):
        return torch.randint(net.likelihood.levels, (count, height, width))
    return torch.randint(256, (count, net.likelihood.channels, height, width)) / 127.5 - 1


@every_network
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("likelihood", [Softmax(5), LogisticMixture(3, 2)], ids=["soft", "mix"])
def test_cached_parameters_are_the_full_forwards(kind, classes, likelihood) -> None:
    net = network(kind, likelihood, classes=classes, kernel_size=5)
    values = random_values(net, 3)
    labels = None if classes is None else torch.tensor([2, 0, 1])
    with torch.no_grad():
        full = net(values, labels)
        cache = net.begin(3, labels)
        for pixel in itertools.product(*map(range, net.shape)):
            place = (..., *pixel)
            torch.testing.assert_close(cache.parameters(), full[place], rtol=0, atol=1e-5)
            cache.append(values[place])


@pytest.mark.parametrize("classes", [None, 3])
def test_cached_parameters_given_a_coarser_map(classes) -> None:
    """The same; a code of the coarser map matters everywhere near it, also to the first pixel."""
    net = network("attention", classes=classes, above=(4, 3, 4))
    values, above = random_values(net, 2), torch.randint(4, (2, 3, 4))
    labels = None if classes is None else torch.tensor([2, 0])
    with torch.no_grad():
        full = net(values, labels, above)
        cache = net.begin(2, labels, above)
        for pixel in itertools.product(*map(range, net.shape)):
            torch.testing.assert_close(cache.parameters(), full[(..., *pixel)], rtol=0, atol=1e-5)
            cache.append(values[(..., *pixel)])
        changed = above.clone()
        changed[:, 0, 0] = (changed[:, 0, 0] + 1) % 4
        apart = (net(values, labels, changed) - full).abs().amax((0, 1))
        assert apart[0, 0] > 1e-4
        drawn = net.sample(2, 1, labels, above)
        assert torch.equal(
            drawn[:1], net.sample(1, 1, *(x if x is None else x[:1] for x in (labels, above)))
        )


def test_two_levels_sum_to_1() -> None:
    top = network("attention", Softmax(2), (1, 2)).double()
    bottom = network("gated", Softmax(2), (2, 1), above=(2, 1, 2)).double()
    prior = TwoLevelPrior(top, bottom)
    values = torch.tensor(list(itertools.product([0, 1], repeat=4)))
    with torch.no_grad():
        expected = torch.exp(-prior.nll(values))
    assert math.isclose(expected.sum().item(), 1, abs_tol=1e-10)
    count = 20_000
    drawn = (prior.sample(count, 1) * torch.tensor([8, 4, 2, 1])).sum(1)
    found = torch.bincount(drawn, minlength=16) / count
    # Five standard deviations of a frequency.
    assert ((found - expected).abs() < 5 * (expected / count).sqrt() + 1e-4).all()


def seen(net: CausalNetwork, row: int, column: int) -> Tensor:
    """Which pixels have a gradient at that one, (H, W)."""
    embedded = torch.randn(1, net.width, *net.shape, dtype=torch.float64, requires_grad=True)
    net.features(embedded, None)[0, :, row, column].square().sum().backward()
    return embedded.grad.abs().sum((0, 1)) > 0


def before(shape: tuple[int, int], row: int, column: int) -> Tensor:
    return torch.arange(shape[0] * shape[1]).view(shape) < row * shape[1] + column


@every_network
def test_no_pixel_sees_itself_or_a_later_one(kind) -> None:
    net = network(kind).double()
    for row, column in itertools.product(range(6), range(7)):
        assert not (seen(net, row, column) & ~before((6, 7), row, column)).any()


def test_the_gated_network_has_no_blind_spot() -> None:
    """The cone of pixels that its kernels reach is seen whole; masked kernels miss a part."""
    shape, (row, column), reach = (12, 15), (8, 7), 2 + 1
    place = torch.meshgrid(torch.arange(12), torch.arange(15), indexing="ij")
    up, aside = row - place[0], (place[1] - column).abs()
    # The link goes a row up; then both kernels reach `reach` rows and columns.
    cone = before(shape, row, column) & (up <= reach + 1) & (aside <= reach)
    cone &= (up > 0) | (place[1] < column)
    gated = seen(network("gated", shape=shape).double(), row, column)
    assert (gated >= cone).all()
    # The corner at the upper right of a stack of 3x3 kernels, which masked ones approach by
    # diagonals of slope 1 at best.
    masked = network("masked", shape=shape, layers=4, first_kernel_size=3).double()
    gated = network("gated", shape=shape, layers=5, first_kernel_size=3).double()
    right = (row - 1, column + 4)
    assert not seen(masked, row, column)[right]
    assert seen(gated, row, column)[right]


def test_attention_sees_all_before_it() -> None:
    net = network("attention", shape=(12, 15)).double()
    assert torch.equal(seen(net, 8, 7), before((12, 15), 8, 7))


@every_network
def test_dropout_is_for_training_alone(kind) -> None:
    net, plain = network(kind, dropout=0.5), network(kind)
    plain.load_state_dict(net.state_dict())
    values = random_values(net, 2)
    assert not torch.equal(net(values), net(values))
    assert torch.equal(net.eval()(values), plain(values))
    assert torch.equal(net.sample(2, 0), plain.sample(2, 0))


@every_network
def test_probabilities_of_all_small_images_sum_to_1(kind) -> None:
    net = network(kind, Softmax(2), (2, 2), classes=2).double()
    images = torch.tensor(list(itertools.product([0, 1], repeat=4))).view(16, 2, 2)
    for label in range(2):
        nll = net.nll(images, torch.full((16,), label))
        assert math.isclose(torch.exp(-nll).sum().item(), 1, abs_tol=1e-10)


@every_network
def test_samples_follow_the_probabilities(kind) -> None:
    net = network(kind, Softmax(3), (1, 3))
    for parameter in net.head.parameters():
        parameter.data *= 4  # far from uniform
    images = torch.tensor(list(itertools.product(range(3), repeat=3))).view(27, 1, 3)
    with torch.no_grad():
        expected = torch.exp(-net.nll(images))
    count = 20_000
    drawn = (net.sample(count, 1).view(count, 3) * torch.tensor([9, 3, 1])).sum(1)
    found = torch.bincount(drawn, minlength=27) / count
    # Five standard deviations of a frequency.
    assert ((found - expected).abs() < 5 * (expected / count).sqrt() + 1e-4).all()
    assert expected.max() > 2 / 27


@every_network
@pytest.mark.parametrize("likelihood", [Softmax(5), LogisticMixture(3, 2)], ids=["soft", "mix"])
def test_an_image_is_its_seed_and_place(kind, likelihood) -> None:
    net = network(kind, likelihood, shape=(3, 4))
    whole = net.sample(70, seed=5)
    assert torch.equal(whole, net.sample(70, seed=5))
    assert torch.equal(whole[:2], net.sample(2, seed=5))
    assert not torch.equal(whole[:6], whole[64:]), "parts of a batch have noise of their own"
    assert not torch.equal(whole, net.sample(70, seed=6))
    assert not torch.equal(net.sample(2), net.sample(2)), "torch's generator gives the seed"
    net.likelihood.check(whole, (3, 4))


def test_masks_hold_what_their_kind_may_see() -> None:
    assert MaskedConv2d(1, 1, 3, "A").mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert MaskedConv2d(1, 1, 3, "B").mask.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


def test_mixture_nll_is_that_of_its_parameters() -> None:
    net = network("gated", LogisticMixture(1, 3), (4, 4))
    images = random_values(net, 2)
    torch.testing.assert_close(net.nll(images), discretized_mix_logistic(images, net(images)))


@pytest.mark.parametrize("cls", [PixelCNN, GatedPixelCNN])
def test_bad_arguments(cls) -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 1, got 4"):
        cls(Softmax(4), (8, 8), kernel_size=4)
    with pytest.raises(ValueError, match="first_kernel_size must be odd and at least 3, got 1"):
        cls(Softmax(4), (8, 8), first_kernel_size=1)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        cls(Softmax(4), (8, 8), layers=0)
    with pytest.raises(TypeError, match="width must be an int"):
        cls(Softmax(4), (8, 8), width=1.5)
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        Softmax(1)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        LogisticMixture(2)


def test_bad_mask() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 3, got 4"):
        MaskedConv2d(1, 1, 4, "A")
    with pytest.raises(ValueError, match="kind must be one of A, B, got 'C'"):
        MaskedConv2d(1, 1, 3, "C")


@every_network
def test_bad_values_and_labels(kind) -> None:
    net = network(kind, classes=2)
    values, labels = random_values(net, 2), torch.tensor([0, 1])
    values[1, 2, 3] = 5
    with pytest.raises(ValueError, match=r"values must lie in \[0, 5\), got 0 to 5"):
        net(values, labels)
    with pytest.raises(ValueError, match=r"values must lie in \[0, 5\), got -1"):
        net(values - 1 - 5 * (values == 5).long(), labels)
    values = random_values(net, 2)
    with pytest.raises(TypeError, match=r"values must be int64, got torch.float32"):
        net(values.float(), labels)
    with pytest.raises(ValueError, match=r"shape \(N, 6, 7\), got \(2, 6, 6\)"):
        net(values[..., :6], labels)
    with pytest.raises(ValueError, match="labels must be given: the network has 2 classes"):
        net(values)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        net(values, labels * 2)
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(3,\)"):
        net.sample(3, 0, labels)
    with pytest.raises(ValueError, match="labels must be None"):
        network(kind)(values, labels)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        net.sample(0, 0, labels)
    images = network(kind, LogisticMixture(3, 2))
    with pytest.raises(ValueError, match=r"values must lie in \[-1, 1\], got 0 to 255"):
        images(torch.arange(256.0)[:252].view(2, 3, 6, 7) / 251 * 255)
    with pytest.raises(TypeError, match="values must be floating point"):
        images(torch.zeros(2, 3, 6, 7, dtype=torch.uint8))


def test_bad_codes_of_the_level_above() -> None:
    net, plain = network("gated", above=(4, 3, 4)), network("masked")
    values, above = random_values(net, 2), torch.randint(4, (2, 3, 4))
    with pytest.raises(ValueError, match="above must be given"):
        net(values)
    with pytest.raises(ValueError, match="above must be None"):
        plain(values, None, above)
    with pytest.raises(ValueError, match=r"above must be int64 of shape \(2, 3, 4\)"):
        net(values, None, above[:1])
    with pytest.raises(ValueError, match=r"above must lie in \[0, 4\), got 4 to 4"):
        net.sample(2, 0, None, above * 0 + 4)
    with pytest.raises(ValueError, match=r"bottom must have above=\(5, 6, 7\)"):
        TwoLevelPrior(network("gated"), net)
