"""The networks against PyTorch's DCGAN tutorial, the paper's initialisation, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyfastgan.gan.dcgan import IMAGE_SIZES, Discriminator, Generator


def tutorial_generator(nz: int = 100, ngf: int = 64, nc: int = 3) -> nn.Sequential:
    """The `main` of the Generator of pytorch.org's DCGAN tutorial, written from its
    architecture."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(nz, ngf * 8, 4, 1, 0, bias=False)]
    for factor in (8, 4, 2):
        layers += [nn.BatchNorm2d(ngf * factor), nn.ReLU(True)]
        layers += [nn.ConvTranspose2d(ngf * factor, ngf * factor // 2, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(ngf), nn.ReLU(True), nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


def tutorial_discriminator(ndf: int = 64, nc: int = 3) -> nn.Sequential:
    """The `main` of the tutorial's Discriminator."""
    layers = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for factor in (1, 2, 4):
        layers += [nn.Conv2d(ndf * factor, ndf * factor * 2, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(ndf * factor * 2), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False), nn.Sigmoid())


def trained(network: nn.Sequential) -> nn.Sequential:
    """Weights and statistics away from their initial values, so that no key can be forgotten."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data.uniform_(-0.1, 0.1)
        elif tensor.is_floating_point():
            tensor.data.uniform_(0.2, 0.6)
    return network


class Tutorial(nn.Module):
    """The tutorial's modules keep their layers in `main`."""

    def __init__(self, main: nn.Sequential) -> None:
        super().__init__()
        self.main = main


@pytest.mark.parametrize("training", [True, False])
def test_tutorial_weights_give_the_tutorials_outputs(training: bool) -> None:
    torch.manual_seed(0)
    theirs = trained(tutorial_generator(ngf=16)).train(training)
    ours = Generator(64, channels=3, width=16, latent_dim=100).train(training)
    ours.load_state_dict(Tutorial(theirs).state_dict())
    latent = torch.randn(3, 100, 1, 1)
    images = theirs(latent)
    assert 0.01 < images.abs().mean() < 0.99, "tanh hides a difference in such images"
    torch.testing.assert_close(ours(latent), images)

    theirs = trained(tutorial_discriminator(ndf=16)).train(training)
    ours = Discriminator(64, channels=3, width=16).train(training)
    ours.main.load_state_dict(theirs.state_dict())
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs[:-1](images).reshape(-1))


def test_the_default_size_is_the_tutorials() -> None:
    """The same keys and shapes, but for the biases of the layers without batch norm."""
    for ours, theirs, places in (
        (Generator(), tutorial_generator(), ("12",)),
        (Discriminator(), tutorial_discriminator(), ("0", "11")),
    ):
        found = {key: value.shape for key, value in ours.state_dict().items()}
        for place in places:
            del found[f"main.{place}.bias"]
        expected = Tutorial(theirs).state_dict()
        assert found == {key: value.shape for key, value in expected.items()}


def test_a_bias_that_is_given_is_kept() -> None:
    source, target = Generator(8, width=2), Generator(8, width=2)
    torch.nn.init.ones_(source.main[-1].conv.bias)
    target.load_state_dict(source.state_dict())
    assert (target.main[-1].conv.bias == 1).all()


def test_foreign_weights_that_do_not_fit_are_refused() -> None:
    state = Tutorial(tutorial_generator(ngf=16)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        Generator(64, width=8).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        Generator(128, width=8).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Generator(16, width=64).load_state_dict(state)


def test_own_state_survives_the_round_trip() -> None:
    source, target = Generator(16, channels=1, width=4), Generator(16, channels=1, width=4)
    target.load_state_dict(source.state_dict())
    latent = torch.randn(2, 100)
    assert torch.equal(source(latent), target(latent))


@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_and_its_widths(size: int, channels: int) -> None:
    generator = Generator(size, channels=channels, width=3, latent_dim=5)
    discriminator = Discriminator(size, channels=channels, width=3)
    images = generator(torch.randn(2, 5))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (2,)
    widest = generator.main[0].conv
    assert widest.weight.shape == (5, 3 * size // 8, 4, 4)
    assert discriminator.main[-1].conv.weight.shape == (1, 3 * size // 8, 4, 4)
    norms = [block.norm is not None for block in generator.main]
    assert norms == [True] * (len(norms) - 1) + [False]
    norms = [block.norm is not None for block in discriminator.main]
    assert norms == [False] + [True] * (len(norms) - 2) + [False]


@pytest.mark.parametrize("latent", [(4, 7), (4, 7, 1, 1)])
def test_both_latent_shapes(latent: tuple[int, ...]) -> None:
    assert Generator(8, channels=1, width=2, latent_dim=7)(torch.randn(latent)).shape == (
        4,
        1,
        8,
        8,
    )


def test_empty_batch() -> None:
    images = Generator(8, width=2).eval()(torch.zeros(0, 100))
    assert images.shape == (0, 3, 8, 8)
    assert Discriminator(8, width=2).eval()(images).shape == (0,)


def test_initialisation_is_the_papers() -> None:
    torch.manual_seed(0)
    for network in (Generator(64), Discriminator(64)):
        for block in network.main:
            weight = block.conv.weight.detach()
            spread = 4 / weight.numel() ** 0.5
            assert abs(weight.mean()) < 0.02 * spread
            assert weight.std().item() == pytest.approx(0.02, rel=spread)
            if block.norm is None:
                assert not block.conv.bias.any()
            else:
                assert block.conv.bias is None
                weight = block.norm.weight.detach()
                assert abs(weight.mean() - 1) < 0.02 * 4 / weight.numel() ** 0.5
                assert weight.std().item() == pytest.approx(0.02, rel=4 / weight.numel() ** 0.5)
                assert not block.norm.bias.any()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="image_size must be one of 8, 16, 32, 64, 128, not 28"):
        Generator(28)
    with pytest.raises(ValueError, match=r"image_size must be .* not 16\.0"):
        Generator(16.0)
    with pytest.raises(ValueError, match="channels must be at least 1, not 0"):
        Discriminator(16, channels=0)
    with pytest.raises(TypeError, match=r"width must be an integer, not 2\.5"):
        Discriminator(16, width=2.5)
    with pytest.raises(TypeError, match="latent_dim must be an integer, not True"):
        Generator(16, latent_dim=True)


def test_bad_inputs() -> None:
    generator, discriminator = Generator(16, channels=1, width=2), Discriminator(16, width=2)
    expected = r"latent must be of shape \(N, 100\) or \(N, 100, 1, 1\), not \(2, 99\)"
    with pytest.raises(ValueError, match=expected):
        generator(torch.zeros(2, 99))
    with pytest.raises(ValueError, match=r"not \(2, 100, 2, 2\)"):
        generator(torch.zeros(2, 100, 2, 2))
    with pytest.raises(
        TypeError, match=r"latent must be a floating-point tensor, not torch\.int64"
    ):
        generator(torch.zeros(2, 100, dtype=torch.int64))
    for shape in ((2, 1, 16, 16), (2, 3, 32, 32), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"images must be of shape \(N, 3, 16, 16\)"):
            discriminator(torch.zeros(shape))
    with pytest.raises(
        TypeError, match=r"images must be a floating-point tensor, not torch\.uint8"
    ):
        discriminator(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
