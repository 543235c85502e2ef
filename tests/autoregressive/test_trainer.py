"""Training a tiny PixelCNN: bits per dimension, the run folder, priors over codes, and bad input."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pyfastgan as pf
from pyfastgan import cli, data
from pyfastgan.autoregressive import (
    LogisticMixture,
    PixelCNNConfig,
    PixelCNNSystem,
    PixelModel,
    Softmax,
    TwoLevelPrior,
    load_codes,
)
from pyfastgan.autoregressive.model import to_values

TINY = {
    "layers": 1,
    "width": 4,
    "first_kernel_size": 3,
    "components": 2,
    "batch_size": 8,
    "steps": 4,
    "accelerator": "cpu",
    "log_every": 2,
    "sample_every": 0,
    "sample_count": 4,
}
FABRIC = SimpleNamespace(global_rank=0, backward=lambda loss: loss.backward())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def train(out: Path, **changes) -> pf.training.Run:
    return pf.autoregressive.train(**{"config": TINY, "out": out, **changes})


def bits(run: pf.training.Run) -> float:
    return json.loads((run.path / "test.json").read_text())["bits_per_dim"]


@pytest.mark.parametrize("levels", [17, 256])
def test_a_network_of_zeros_has_the_bits_of_its_levels(levels: int) -> None:
    shape = {"image_size": 8, "channels": 1, "levels": levels, "likelihood": "softmax"}
    system = PixelCNNSystem(PixelCNNConfig(**TINY, **shape))
    for parameter in system.network.head[3].parameters():
        nn.init.zeros_(parameter)
    images = data.load("digits").tensors[0][:8]
    found = system.training_step(FABRIC, (images,), 1)["bits_per_dim"]
    assert math.isclose(found.item(), math.log2(levels), rel_tol=1e-6)
    assert not found.requires_grad


def test_a_step_descends_the_mean_likelihood() -> None:
    """Against the update by hand, of a mixture over colour images."""
    shape = {"image_size": 8, "channels": 3}
    system, hand = (PixelCNNSystem(PixelCNNConfig(**TINY, **shape)) for _ in range(2))
    hand.network.load_state_dict(system.network.state_dict())
    images = torch.randint(256, (8, 3, 8, 8)) / 127.5 - 1
    found = system.training_step(FABRIC, (images,), 1)["bits_per_dim"]
    parameters = hand.network(images)
    loss = pf.ops.discretized_mix_logistic(images, parameters).mean() / (192 * math.log(2))
    loss.backward()
    torch.optim.Adam(hand.network.parameters(), 1e-3).step()
    torch.testing.assert_close(found, loss.detach())
    for ours, theirs in zip(system.network.parameters(), hand.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_run_on_digits(tmp_path: Path) -> None:
    run = train(tmp_path / "run", data="digits", steps=40)
    config = run.config
    assert (config.data, config.levels, config.image_size) == ("digits:train", 17, 8)
    model = pf.autoregressive.load(run)
    assert not model.network.training
    test = data.load("digits", split="test")
    assert math.isclose(bits(run), model.bits_per_dim(test), rel_tol=1e-6)
    assert bits(run) < math.log2(17), "it has learned something"
    images = model.sample(5, seed=3)
    assert images.shape == (5, 1, 8, 8)
    assert torch.equal(images, pf.autoregressive.load(run.path).sample(5, seed=3))
    level = (images + 1) * 8
    assert torch.equal(level, level.round())
    assert level.min() >= 0
    assert level.max() <= 16
    assert run.samples.is_file()


@pytest.mark.parametrize("network", ["gated", "masked"])
def test_a_stopped_and_resumed_run_gives_the_same_bits(tmp_path: Path, network: str) -> None:
    changes = {"data": "digits", "network": network}
    whole = train(tmp_path / "whole", **changes)
    train(tmp_path / "parts", steps=2, **changes)
    parts = train(tmp_path / "parts", resume=True, **changes)
    ours, theirs = load_file(whole.weights), load_file(parts.weights)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert bits(whole) == bits(parts)


def test_colour_images_held_as_bytes(tmp_path: Path) -> None:
    run = train(tmp_path / "run", data="photos", image_size=8)
    assert (run.config.levels, run.config.channels, run.config.data) == (256, 3, "photos:train")
    model = pf.autoregressive.load(run)
    assert isinstance(model.network.likelihood, LogisticMixture)
    images = model.sample(2, seed=0)
    assert images.shape == (2, 3, 8, 8)
    level = (images + 1) * 127.5
    torch.testing.assert_close(level, level.round(), atol=1e-4, rtol=0)
    assert 0 < bits(run) < 12


def test_bits_per_dim_of_every_kind_of_data(tmp_path: Path) -> None:
    stored = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8)
    images = stored.float() / 127.5 - 1
    run = train(tmp_path / "run", data=images)
    model = pf.autoregressive.load(run)
    expected = model.nll(images).mean().item() / 64 / math.log(2)
    found = json.loads((run.path / "test.json").read_text())
    assert found["held_out"] == "training data, there is no test split"
    assert found["images"] == 70
    assert math.isclose(found["bits_per_dim"], expected, rel_tol=1e-5)
    assert math.isclose(found["nll"], expected * 64 * math.log(2), rel_tol=1e-5)
    own = torch.utils.data.TensorDataset(images)
    for dataset in (data.TensorData(images), data.ImageData(stored), data.MapData(own)):
        assert math.isclose(model.bits_per_dim(dataset), expected, rel_tol=1e-5)


def test_classes_in_turn(tmp_path: Path) -> None:
    run = train(tmp_path / "run", data="digits", conditional=True)
    model = pf.autoregressive.load(run)
    assert run.config.classes == model.network.classes == 10
    assert torch.equal(model.sample(12, 0), model.sample(12, 0, torch.arange(12) % 10))
    with pytest.raises(ValueError, match="the data have no labels"):
        train(tmp_path / "no", data=torch.zeros(8, 1, 8, 8), conditional=True)


def test_levels_are_those_of_the_images() -> None:
    digits = data.load("digits").tensors[0]
    level = to_values(Softmax(17), digits)
    assert torch.equal(level, (digits[:, 0] * 8 + 8).long())
    model = PixelModel(SimpleNamespace(likelihood=Softmax(17)))
    assert torch.equal(model.images(level), digits)
    levels = torch.arange(256)
    images = (levels / 127.5 - 1).bfloat16().view(256, 1, 1, 1)
    assert torch.equal(to_values(Softmax(256), images).flatten(), levels)
    binary = to_values(Softmax(2), torch.tensor([-1.0, -0.1, 0.1, 1.0]).view(1, 1, 2, 2))
    assert binary.flatten().tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], got 0 to 255"):
        to_values(LogisticMixture(1), torch.tensor([0.0, 255.0]).view(1, 1, 1, 2))


def codes_run(path: Path, *, metadata: dict[str, str] | None = None, **tensors: Tensor) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text("model: quantiser\ndata: photos:train\n")
    metadata = {"codes": "6"} if metadata is None else metadata
    separate = {name: x.clone().contiguous() for name, x in tensors.items()}
    save_file(separate, path / "codes.safetensors", metadata)
    return path


def test_a_prior_over_codes(tmp_path: Path) -> None:
    maps, labels = torch.randint(6, (40, 4, 4)), torch.arange(40) % 3
    other = codes_run(tmp_path / "vq", train=maps[:32], test=maps[32:], labels_train=labels[:32])
    run = train(tmp_path / "prior", codes=str(other))
    config = run.config
    assert (config.levels, config.image_size, config.data) == (6, 4, "photos:train")
    model = pf.autoregressive.load(run)
    assert math.isclose(
        bits(run), model.nll(maps[32:]).mean().item() / 16 / math.log(2), rel_tol=1e-6
    )
    assert model.sample(3, 1).shape == (3, 1, 4, 4), "codes as grey levels"
    table = torch.rand(6) * 2 - 1
    decoded = pf.autoregressive.load(run, decode=lambda codes: table[codes][:, None]).sample(3, 1)
    assert torch.equal(decoded[:, 0], table[model.network.sample(3, 1)])
    with pytest.raises(ValueError, match=r"values must lie in \[0, 6\), got 6 to 6"):
        model.nll(torch.full((1, 4, 4), 6))
    run = train(tmp_path / "classes", codes=str(other), conditional=True)
    assert run.config.classes == 3


def test_a_prior_over_two_levels(tmp_path: Path) -> None:
    """The likelihood is p(top) p(bottom | top); samples are pairs that the other family decodes."""
    bottom, top = torch.randint(6, (40, 4, 4)), torch.randint(6, (40, 2, 2))
    labels = torch.arange(40) % 3
    parts = {"train": bottom[:32], "train_top": top[:32], "test": bottom[32:], "test_top": top[32:]}
    parts |= {"labels_train": labels[:32], "labels_test": labels[32:]}
    other = codes_run(tmp_path / "vq", **parts)
    run = train(tmp_path / "prior", codes=str(other), layers=2, conditional=True)
    config = run.config
    assert (config.image_size, config.top_size, config.attention) == (4, 2, 2)
    model = pf.autoregressive.load(run)
    prior = model.network
    assert isinstance(prior, TwoLevelPrior)
    assert list(prior.top.attentions) == ["1"]
    assert not prior.bottom.attentions
    values = torch.cat((top[32:].flatten(1), bottom[32:].flatten(1)), 1)
    pair = prior.split(values)
    assert torch.equal(pair[0], top[32:])
    assert torch.equal(pair[1], bottom[32:])
    by_hand = prior.top.nll(top[32:], labels[32:]) + prior.bottom.nll(
        bottom[32:], labels[32:], top[32:]
    )
    torch.testing.assert_close(model.nll(values, labels[32:]), by_hand)
    assert math.isclose(bits(run), by_hand.mean().item() / 20 / math.log(2), rel_tol=1e-5)
    drawn = prior.sample(5, 1, labels[:5])
    assert torch.equal(drawn[:2], prior.sample(2, 1, labels[:2]))
    assert torch.equal(prior.split(drawn)[0], prior.top.sample(5, 1, labels[:5]))
    assert model.sample(3, 1).shape == (3, 1, 4, 4), "the finer codes as grey levels"
    seen: list[tuple[Tensor, Tensor]] = []
    images = torch.zeros(5, 3, 8, 8)
    decoder = pf.autoregressive.load(run, decode=lambda pair: seen.append(pair) or images)
    assert decoder.sample(5, 1, labels[:5]) is images
    assert all(torch.equal(a, b) for a, b in zip(seen[0], prior.split(drawn)))
    with pytest.raises(ValueError, match=r"values must be of shape \(N, 20\), got \(8, 16\)"):
        model.nll(values[:, :16], labels[32:])
    with pytest.raises(ValueError, match=r"values must lie in \[0, 6\), got 0 to 6"):
        model.nll(torch.cat((values[:, :3], values[:, 3:] * 0 + 6), 1), labels[32:])
    with pytest.raises(ValueError, match="network must be 'gated' for codes of two levels"):
        train(tmp_path / "masked", codes=str(other), network="masked")
    with pytest.raises(ValueError, match="top_size is for codes of two levels"):
        train(tmp_path / "images", data="digits", top_size=2)


def test_bad_codes(tmp_path: Path) -> None:
    maps = torch.randint(6, (8, 4, 4))
    cases = {
        r"train must lie in \[0, 6\), got -?\d+ to 6": {"train": maps.clone().fill_(6)},
        r"test must lie in \[0, 6\), got -1": {"train": maps, "test": maps - 1 - maps},
        "train must be int64 of shape": {"train": maps.int()},
        "must hold `train`, got test": {"test": maps},
        "test must be of the shape of train": {"train": maps, "test": maps[:, 1:]},
        "the labels of .*train must be int64 of shape": {"train": maps, "labels_train": maps},
        "`codes` must be at least 2, got ''": {"train": maps, "metadata": {}},
        "must be square, got \\(3, 4\\)": {"train": maps[:, 1:]},
        "must be square, got \\(2, 1\\)": {"train": maps, "train_top": maps[:, :2, :1]},
        r"train_top must lie in \[0, 6\), got 6 to 6": {
            "train": maps,
            "train_top": maps.clone().fill_(6),
        },
        "train_top must hold as many maps as .*train, 8, got 7": {
            "train": maps,
            "train_top": maps[1:],
        },
        "must both have the codes of a top level": {
            "train": maps,
            "test": maps,
            "train_top": maps,
        },
    }
    for index, (message, content) in enumerate(cases.items()):
        run = codes_run(tmp_path / str(index), **content)
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "out", codes=str(run))
    with pytest.raises(ValueError, match="holds no codes"):
        load_codes(tmp_path)
    (tmp_path / "codes.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot read the codes"):
        load_codes(tmp_path)
    run = codes_run(tmp_path / "good", train=maps)
    with pytest.raises(ValueError, match="levels must be 6 like the codes of"):
        train(tmp_path / "out", codes=str(run), levels=7)
    with pytest.raises(ValueError, match="levels must be 256 for a mixture"):
        train(tmp_path / "out", codes=str(run), likelihood="mixture")
    assert not (tmp_path / "out").exists()


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training a prior over another family's codes, and images out of it."""
    other = ModuleType("pyfastgan.quantisers")
    other.PRESETS = {"quantiser": pf.training.TrainConfig()}
    other.decode = lambda run, codes: codes[:, None].float().expand(-1, 3, -1, -1) / 2.5 - 1
    monkeypatch.setitem(sys.modules, other.__name__, other)
    monkeypatch.setattr(cli.runs, "FAMILIES", ("autoregressive", "quantisers"))
    monkeypatch.chdir(tmp_path)
    maps = torch.randint(6, (16, 4, 4))
    codes_run(tmp_path / "vq", train=maps, test=maps)
    small = [f"--{key}={value}" for key, value in TINY.items()]
    words = ["train", "pixelcnn", "--codes", "vq", "--out", "prior", *small]
    assert cli.main(words) == 0
    assert "the test split: images 16, nll" in capsys.readouterr().out
    assert cli.main([*words, "--resume", "--steps", "5"]) == 0
    assert cli.main(["sample", "prior", "--count", "3", "--out", "new.png"]) == 0
    from PIL import Image

    colours = {pixel for _, pixel in Image.open("new.png").getcolors()}
    expected = {51 * level for level in range(6)}
    assert {value for pixel in colours for value in pixel} <= expected
    capsys.readouterr()

    del other.decode
    assert cli.main(["sample", "prior"]) == 2
    assert "pyfastgan.quantisers has no codes to decode" in capsys.readouterr().err
    assert cli.main(["train", "pixelcnn", "--codes", "none", "--out", "x"]) == 2
    assert "none holds no run" in capsys.readouterr().err


def test_bad_configuration(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="did you mean 'pixelcnn'"):
        pf.autoregressive.train("pixelcn", out=out)
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 1, got 2"):
        train(out, kernel_size=2)
    with pytest.raises(ValueError, match="first_kernel_size must be odd"):
        train(out, first_kernel_size=4)
    with pytest.raises(ValueError, match="did you mean 'gated'"):
        train(out, network="gate")
    with pytest.raises(ValueError, match="did you mean 'mixture'"):
        train(out, likelihood="mixtur")
    with pytest.raises(ValueError, match="attention must be 0 in a masked network"):
        train(out, network="masked", attention=2)
    with pytest.raises(ValueError, match="dropout must be below 1"):
        train(out, dropout=1.0)
    with pytest.raises(ValueError, match="likelihood must be 'mixture' for images of 3 channels"):
        train(out, data="photos", image_size=8, likelihood="softmax")
    with pytest.raises(ValueError, match="levels must be 256 for a mixture"):
        train(out, data="digits", likelihood="mixture", levels=17)
    with pytest.raises(ValueError, match=r"\(1, 9, 9\), got items of shape \(1, 8, 8\)"):
        train(out, data=torch.zeros(8, 1, 8, 8), image_size=9, channels=1)
    with pytest.raises(ValueError, match="got items of shape"):
        train(out, data="moons")
    with pytest.raises(ValueError, match="data must be given"):
        train(out, config={**TINY, "data": "given in Python"})
    with pytest.raises(ValueError, match="image_size and channels must be given where there are"):
        PixelCNNSystem(PixelCNNConfig())
    assert not out.exists()
