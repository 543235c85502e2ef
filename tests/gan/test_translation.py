"""pix2pix and CycleGAN: their networks against torch's layers, the steps, the history, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.data import PairData, UnpairedData
from pyfastgan.gan import (
    CycleGAN,
    CycleGANConfig,
    ImageHistory,
    PatchDiscriminator,
    Pix2Pix,
    Pix2PixConfig,
    ResNetGenerator,
    UNet,
)
from pyfastgan.ops import random_uniform

TINY = {"width": 4, "batch_size": 2, "sample_count": 4, "discriminator_layers": 1}
RUN = {**TINY, "image_size": 16, "accelerator": "cpu", "log_every": 1, "sample_every": 0}
SHAPE = {"image_size": 16, "in_channels": 1, "out_channels": 1}
FABRIC = SimpleNamespace(global_rank=0, backward=lambda loss: loss.backward())
CPU = {"accelerator": "cpu"}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pairs(count: int = 6, size: int = 16, channels: int = 1) -> PairData:
    first = torch.rand(count, 1, size, size) * 2 - 1
    return PairData(first, -first.expand(-1, channels, -1, -1))


class PlainUNet(nn.Module):
    """The paper's U-Net of 16 pixels in layers of torch: every encoder map is kept before its
    activation, the decoder takes the ReLU of all that it is given."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.down = nn.ModuleList(block.conv for block in unet.down)
        self.up = nn.ModuleList(block.conv for block in unet.up)
        self.norms = nn.ModuleList(block.norm or nn.Identity() for block in (*unet.down, *unet.up))

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for k, (conv, norm) in enumerate(zip(self.down, self.norms)):
            x = norm(conv(x if k == 0 else functional.leaky_relu(x, 0.2)))
            maps.append(x)
        x = maps.pop()
        for k, (conv, norm) in enumerate(zip(self.up, self.norms[len(self.down) :])):
            x = norm(conv(x.relu()))
            if k == len(self.up) - 1:
                return x.tanh()
            if k < 2:
                x = functional.dropout(x, 0.5)
            x = torch.cat([x, maps.pop()], 1)
        raise AssertionError


def test_the_unet_is_the_papers() -> None:
    unet = UNet(16, in_channels=1, width=4)
    images = torch.randn(3, 1, 16, 16)
    plain = PlainUNet(unet)
    torch.manual_seed(1)
    expected = plain(images)
    torch.manual_seed(1)
    torch.testing.assert_close(unet(images), expected)


def test_dropout_stays_on_in_evaluation() -> None:
    unet = UNet(16, width=4).eval()
    for block in unet.up:  # initial weights are too small to show it
        nn.init.normal_(block.conv.weight)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(unet(images), unet(images), atol=1e-3)


def test_batch_norm_goes_by_the_batch_in_evaluation() -> None:
    """As in the paper: running statistics of edges and of blank images together fit neither."""
    unet = UNet(16, in_channels=1, width=4)
    assert not [name for name in unet.state_dict() if "running" in name]
    images, others = torch.randn(3, 1, 16, 16), 5 + torch.randn(64, 1, 16, 16)
    torch.manual_seed(1)
    expected = unet(images)
    for mode in (True, False):
        unet.train(mode)(others)
        torch.manual_seed(1)
        torch.testing.assert_close(unet(images), expected)


def test_a_logit_sees_70_pixels() -> None:
    judge = PatchDiscriminator(1, width=4).double().eval()
    image = torch.randn(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    logits = judge(image)
    assert logits.shape == (1, 1, 14, 14)
    (gradient,) = torch.autograd.grad(logits[0, 0, 7, 7], image)
    seen = gradient[0, 0] != 0
    assert (seen.any(0).sum(), seen.any(1).sum()) == (70, 70)


def test_the_resnet_generator_is_the_papers() -> None:
    generator = ResNetGenerator(16, in_channels=1, width=2, blocks=1)
    first, *down, block, up1, up2 = (generator.first, *generator.main)
    plain: list[nn.Module] = [nn.ReflectionPad2d(3), first.conv, nn.InstanceNorm2d(2), nn.ReLU()]
    for part in down:
        plain += [part.conv, nn.InstanceNorm2d(part.conv.out_channels), nn.ReLU()]
    before = nn.Sequential(*plain)
    inside = nn.Sequential(
        nn.ReflectionPad2d(1), block.first.conv, nn.InstanceNorm2d(8), nn.ReLU(),
        nn.ReflectionPad2d(1), block.second.conv, nn.InstanceNorm2d(8),
    )  # fmt: skip
    after: list[nn.Module] = []
    for part in (up1, up2):
        after += [part.conv, nn.InstanceNorm2d(part.conv.out_channels), nn.ReLU()]
    after += [nn.ReflectionPad2d(3), generator.last.conv, nn.Tanh()]
    images = torch.randn(2, 1, 16, 16)
    x = before(images)
    expected = nn.Sequential(*after)(x + inside(x))
    torch.testing.assert_close(generator(images), expected)


def test_pix2pix_losses_are_the_papers() -> None:
    """With the same dropout, before either player has moved."""
    system = Pix2Pix(Pix2PixConfig(**TINY, **SHAPE), pairs())
    unet = system.networks["generator"]
    rates = {"generator": 1e-12, "discriminator": 1e-12}
    system.optimizers = {
        name: torch.optim.SGD(system.networks[name].parameters(), rate)
        for name, rate in rates.items()
    }
    given, real = torch.rand(2, 2, 1, 16, 16) * 2 - 1
    torch.manual_seed(3)
    losses = system.training_step(FABRIC, (given, real), 1)
    with torch.no_grad():
        torch.manual_seed(3)
        fake, judge = unet(given), system.networks["discriminator"]
        logits = [judge(torch.cat([given, x], 1)) for x in (real, fake)]
        logistic = functional.binary_cross_entropy_with_logits
        of_judge = logistic(logits[0], torch.ones_like(logits[0]))
        of_judge = (of_judge + logistic(logits[1], torch.zeros_like(logits[1]))) / 2
        adversarial = logistic(logits[1], torch.ones_like(logits[1]))
    torch.testing.assert_close(losses["discriminator_loss"], of_judge)
    torch.testing.assert_close(losses["generator_loss"], adversarial)
    torch.testing.assert_close(losses["l1"], functional.l1_loss(fake, real))
    # The generator's gradient is that of the adversarial loss plus 100 times the distance.
    found = [p.grad.clone() for p in unet.parameters()]
    unet.zero_grad()
    torch.manual_seed(3)
    fake = unet(given)
    logits = system.networks["discriminator"](torch.cat([given, fake], 1))
    total = logistic(logits, torch.ones_like(logits)) + 100 * functional.l1_loss(fake, real)
    total.backward()
    for mine, parameter in zip(found, unet.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-4, rtol=1e-4)


def test_cyclegan_losses_are_the_papers() -> None:
    config = CycleGANConfig(**TINY, **SHAPE, blocks=1, learning_rate=1e-12, history=0)
    system = CycleGAN(config, pairs().unpaired())
    first, second = torch.rand(2, 2, 1, 16, 16) * 2 - 1
    g, f = (system.networks[name] for name in CycleGAN.averaged)
    with torch.no_grad():
        l1, mse = functional.l1_loss, functional.mse_loss
        cycle = l1(f(g(first)), first) + l1(g(f(second)), second)
        same = l1(g(second), second) + l1(f(first), first)
        judged = {}
        for kind, real, fake in (("first", first, f(second)), ("second", second, g(first))):
            judge = system.networks[f"judge_{kind}"]
            of_real, of_fake = judge(real), judge(fake)
            judged[kind] = (
                mse(of_fake, torch.ones_like(of_fake)),
                (mse(of_real, torch.ones_like(of_real)) + mse(of_fake, 0 * of_fake)) / 2,
            )
    losses = system.training_step(FABRIC, (first, second), 1)
    torch.testing.assert_close(losses["cycle"], cycle)
    torch.testing.assert_close(losses["identity"], same)
    expected = judged["first"][0] + judged["second"][0]
    torch.testing.assert_close(losses["generator_loss"], expected)
    expected = judged["first"][1] + judged["second"][1]
    torch.testing.assert_close(losses["discriminator_loss"], expected)


def test_the_weights_of_cycle_and_identity() -> None:
    """The gradient is that of adversarial + 10 cycle + 5 identity."""
    config = CycleGANConfig(**TINY, **SHAPE, blocks=0)
    system = CycleGAN(config, pairs().unpaired())
    system.optimizers = {
        name: SimpleNamespace(zero_grad=lambda: None, step=lambda: None, param_groups=[])
        for name in system.optimizers
    }
    seen: list[Tensor] = []
    fabric = SimpleNamespace(global_rank=0, backward=seen.append)
    first, second = torch.rand(2, 2, 1, 16, 16) * 2 - 1
    losses = system.training_step(fabric, (first, second), 1)
    expected = losses["generator_loss"] + 10 * losses["cycle"] + 5 * losses["identity"]
    torch.testing.assert_close(seen[0].detach(), expected)


def test_the_rate_falls_to_zero_in_the_second_half() -> None:
    system = CycleGAN(CycleGANConfig(**TINY, **SHAPE, blocks=0, steps=10), pairs().unpaired())
    rates = []
    for step in range(1, 11):
        system._set_rate(step)
        rates.append(system.optimizers["generators"].param_groups[0]["lr"] / 2e-4)
    assert rates == pytest.approx([1] * 6 + [0.8, 0.6, 0.4, 0.2])


def test_the_history_keeps_and_swaps() -> None:
    history = ImageHistory(3, (1, 1, 1))
    numbered = torch.arange(1.0, 4.0).view(3, 1, 1, 1)
    draws = torch.tensor([[0.0, 0.0]] * 3)
    assert torch.equal(history(numbered, draws), numbered), "handed on while it fills"
    assert history.images.flatten().tolist() == [1, 2, 3]
    more = torch.tensor([7.0, 8.0]).view(2, 1, 1, 1)
    out = history(more, torch.tensor([[0.49, 0.99], [0.51, 0.0]]))
    assert out.flatten().tolist() == [3, 8]
    assert history.images.flatten().tolist() == [1, 2, 7]
    assert torch.equal(ImageHistory(0, (1, 1, 1))(more, draws[:2]), more)


def test_the_historys_statistics() -> None:
    """Half of the images handed on are old; an image that was put in stays for a number of swaps that
    is geometric with mean 50; all 50 places take part alike."""
    size, count = 50, 20_000
    history = ImageHistory(size, (1, 1, 1))
    numbered = torch.arange(float(count)).view(-1, 1, 1, 1)
    out = history(numbered, random_uniform((count, 2), 0)).flatten()[size:]
    ages = torch.arange(float(size), count) - out
    old = ages > 0
    assert old.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / count**0.5)
    # A place is taken with probability 1/2 and is one of 50: an age is geometric with p = 1/100.
    spread = 100 / (count / 2) ** 0.5
    assert ages[old].mean() == pytest.approx(100, abs=5 * spread)
    assert len({*out[old].tolist()}) == old.sum(), "none is handed on twice"


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan"])
def test_stopped_and_resumed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    # More steps than the history has places, so that it swaps.
    options = {**RUN, "data": "digits2bold"}
    if name == "cyclegan":
        options |= {"blocks": 1, "history": 4}
    whole = pf.gan.train(name, out=tmp_path / "whole", steps=8, **options)
    # The rate of a CycleGAN follows `steps`, so that a run that is to be the same is interrupted.
    with pytest.raises(KeyboardInterrupt):
        _interrupted(name, tmp_path / "parts", options)
    parts = pf.gan.train(name, out=tmp_path / "parts", steps=8, resume=True, **options)
    assert whole.weights.read_bytes() == parts.weights.read_bytes()
    assert Image.open(whole.samples).size == (2 * (48 + 2) + 2, 2 * (32 // 2 + 2) + 2)


def _interrupted(name: str, out: Path, options: dict) -> None:
    import signal

    from pyfastgan.gan import cyclegan, pix2pix

    kind = {"pix2pix": pix2pix.Pix2Pix, "cyclegan": cyclegan.CycleGAN}[name]
    step = kind.training_step

    def stop(self, fabric, batch, number):
        if number == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, fabric, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "training_step", stop)
        pf.gan.train(name, out=out, steps=8, **options)


def test_a_loaded_model_translates(tmp_path: Path) -> None:
    run = pf.gan.train("cyclegan", out=tmp_path / "run", steps=1, blocks=0, **RUN)
    model = pf.gan.load(run)
    drawn = model.sample(3, seed=1)
    assert drawn.shape == (3, 1, 16, 16)
    assert torch.equal(drawn, model.sample(3, seed=1))
    assert not torch.equal(drawn, model.sample(3, seed=2))
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(model(images), model.generator(images))
    assert model.inverse(images).shape == images.shape
    assert run.config.data == "digits2bold:train"
    assert (run.path / "inverse.png").is_file()
    with pytest.raises(ValueError, match="images of two kinds"):
        pf.metrics.evaluate.__globals__["halves"]("digits2bold:train", 16)


def test_data_of_ones_own(tmp_path: Path) -> None:
    run = pf.gan.train(
        "pix2pix", data=pairs(channels=3), out=tmp_path / "run", steps=1, **{**RUN, "width": 2}
    )
    assert (run.config.in_channels, run.config.out_channels) == (1, 3)
    with pytest.raises(ValueError, match="handed over in Python"):
        pf.gan.load(run).sample(1)
    assert pf.gan.load(run)(torch.zeros(1, 1, 16, 16)).shape == (1, 3, 16, 16)


def test_the_command_line_trains_on_folders(tmp_path: Path) -> None:
    for side in "AB":
        (tmp_path / side).mkdir()
        for index in range(4):
            shade = Image.new("L", (20, 16), 40 * index)
            shade.save(tmp_path / side / f"{index}.png")
    words = ["train", "pix2pix", "--data", f"pairs:{tmp_path}", "--out", str(tmp_path / "run")]
    words += ["--steps", "1", "--width", "2", "--batch_size", "2", "--accelerator", "cpu"]
    assert cli.main(words) == 2, "16 x 20 is not square"
    assert cli.main([*words, "--image_size", "16"]) == 0
    assert cli.main(["sample", str(tmp_path / "run"), "--count", "2"]) == 0
    assert cli.main(["sample", str(tmp_path / "run"), "--truncation", "1"]) == 2


def test_bad_configurations_and_data(tmp_path: Path) -> None:
    for name, options, says in (
        ("pix2pix", {"image_size": 24}, "image_size must be a power of two, got 24"),
        ("pix2pix", {"l1_weight": -1.0}, "l1_weight must be at least 0"),
        ("pix2pix", {"data": "digits"}, "data must be pairs of images .*got 'digits'"),
        ("pix2pix", {"data": "digits2bold", "in_channels": 3}, "in_channels is 3, but"),
        ("pix2pix", {"discriminator_layers": 9}, "so many halvings leave no patch"),
        ("cyclegan", {"data": "edges2photos"}, "identity_weight needs images of as many channels"),
        ("cyclegan", {"history": -1}, "history must be at least 0"),
        ("cyclegan", {"betas": (0.5, 1.0)}, "betas must be below 1"),
    ):
        with pytest.raises(ValueError, match=says):
            pf.gan.train(name, out=tmp_path / "run", steps=1, **{**RUN, **options})
    unpaired = UnpairedData(torch.zeros(3, 1, 16, 16), torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="data must be pairs of images"):
        pf.gan.train("pix2pix", data=unpaired, out=tmp_path / "run", steps=1, **RUN)
    with pytest.raises(ValueError, match=r"images must be \(N, 2, H, W\)"):
        PatchDiscriminator(2)(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, got 10"):
        ResNetGenerator(10)
    assert not (tmp_path / "run").exists()
    replace(CycleGANConfig(), in_channels=1, out_channels=1)


def test_other_models_refuse_images_of_two_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'digits2bold' has images of two kinds"):
        pf.gan.train("dcgan", data="digits2bold", out=tmp_path / "run", image_size=16)
