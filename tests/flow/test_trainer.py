"""Training tiny flows: a step written out, exact resumption, the test's figures, the run folder, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.data import ImageData, TensorData
from pyfastgan.flow import FlowConfig, FlowSystem
from pyfastgan.flow.system import build, evaluate, rate
from pyfastgan.training.rng import derive_seed

TINY = {
    "batch_size": 16,
    "width": 8,
    "layers": 2,
    "accelerator": "cpu",
    "log_every": 5,
    "sample_every": 0,
    "checkpoint_every": 100,
    "sample_count": 4,
}
FABRIC = SimpleNamespace(
    global_rank=0,
    world_size=1,
    backward=lambda loss: loss.backward(),
    clip_gradients=lambda network, optimizer, max_norm, **_: torch.nn.utils.clip_grad_norm_(
        network.parameters(), max_norm
    ),
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def digits(count: int = 16) -> torch.Tensor:
    return pf.data.load("digits").tensors[0][:count]


def system(**changes) -> FlowSystem:
    values = {**TINY, "flow": "glow", "image_size": 8, "channels": 1, "levels": 17, **changes}
    torch.manual_seed(0)
    return FlowSystem(FlowConfig(**values), TensorData(digits(100)), None)


def test_a_step_descends_the_bound_written_out() -> None:
    flow, hand = system(clip_norm=0.05, warmup_steps=4), system()
    model = hand.networks["model"]
    flow.prepare(3)
    losses = flow.training_step(FABRIC, (digits(),), 3)
    seed = derive_seed(0, 3, 3)
    whole = (digits() + 1) * 8
    y = (whole + pf.ops.random_uniform(whole.shape, seed)) / 17
    z, logdet = model.transform(y)
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + logdet
    bits = -(log_prob - 64 * math.log(17)).mean() / 64
    bits.backward()
    torch.testing.assert_close(losses["bits_per_dim"], bits.detach() / math.log(2))
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.05
    torch.optim.Adam(model.parameters(), 0.75e-3).step()
    for ours, theirs in zip(flow.networks["model"].parameters(), model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_rises_and_falls() -> None:
    config = FlowConfig(warmup_steps=10, decay_steps=100)
    assert rate(config, 5) == pytest.approx(0.5 * 0.5 * (1 + math.cos(0.05 * math.pi)))
    assert rate(config, 50) == pytest.approx(0.5)
    assert rate(config, 100) == rate(config, 200) == 0
    assert rate(FlowConfig(warmup_steps=0), 1) == rate(FlowConfig(), 5000) == 1


def test_noise_depends_on_the_place_in_the_global_batch_alone() -> None:
    images, seen = digits(), []
    for rank, part in ((0, slice(0, 16)), (0, slice(0, 8)), (1, slice(8, 16))):
        flow = system()
        flow.networks["model"].transform.register_forward_pre_hook(lambda _, y: seen.append(y[0]))
        fabric = SimpleNamespace(**{**vars(FABRIC), "global_rank": rank})
        flow.training_step(fabric, (images[part],), 3)
    torch.testing.assert_close(seen[0], torch.cat(seen[1:]))


def test_the_test_averages_over_all_images() -> None:
    """More than one batch, the last one short, bytes with labels."""
    images = torch.randint(0, 256, (330, 1, 8, 8), dtype=torch.uint8)
    data = ImageData(images, torch.arange(330) % 3)
    config = FlowConfig(
        **TINY, flow="realnvp", image_size=8, channels=1, conditional=True, classes=3, levels=2
    )  # two levels, so that the noise, which is of an image's place in the data, weighs much
    model = build(config)
    x, labels = data[:][0], data.stored[1]
    model.init(x, labels)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    found = evaluate(model, data, config)
    with torch.no_grad():
        nll = -model.log_prob(x, labels, seed=0).double()
    assert math.isclose(found["nll"], nll.mean().item(), rel_tol=1e-5)
    assert math.isclose(found["nll_error"], nll.std().item() / 330**0.5, rel_tol=1e-3)
    assert math.isclose(found["bits_per_dim"], found["nll"] / 64 / math.log(2), rel_tol=1e-6)
    assert found["images"] == 330


def test_the_excess_over_a_known_density() -> None:
    config = FlowConfig(**TINY, flow="nsf", data="8gaussians")
    toy = pf.data.TOYS["8gaussians"]
    points = toy.sample(4000, 3).float()
    found = evaluate(build(config), TensorData(points), config)
    assert found["excess"] == pytest.approx(found["nll"] - toy.entropy, abs=0.1)
    assert found["points"] == 4000
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(points).sum(1)  # it is the identity yet
    assert found["nll"] == pytest.approx(-normal.mean().item(), rel=1e-5)


def train(out: Path, name="glow", **changes) -> pf.training.Run:
    return pf.flow.train(name, out=out, **{**TINY, "data": "digits", "scales": 1, **changes})


def test_a_stopped_and_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", steps=20)
    train(tmp_path / "parts", steps=10)
    torch.manual_seed(123)
    parts = train(tmp_path / "parts", steps=20, resume=True)
    weights = load_file(whole.weights), load_file(parts.weights)
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    for name in ("test.json", "samples.png", "temperatures.png", "interpolation.png"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()
    for ours, theirs in zip(whole.history, parts.history, strict=True):
        assert ours["bits_per_dim"] == theirs["bits_per_dim"]


def test_digits_are_learned_and_tested_on_the_others(tmp_path: Path) -> None:
    """Better than equally likely values, and than it is on digits whose pixels stand in another order."""
    changes = {"steps": 120, "batch_size": 64, "width": 32, "layers": 4, "warmup_steps": 10}
    run = train(tmp_path / "run", learning_rate=3e-3, ema_decay=0.9, **changes)
    found = json.loads((run.path / "test.json").read_text())
    assert found["images"] == 597
    assert found["held_out"] == "the test split of digits"
    assert run.config.data == "digits:train"
    assert run.config.levels == 17
    model = pf.flow.load(run)
    assert torch.equal(model.sample(5, seed=1), model.sample(5, seed=1, temperature=0.7))
    images = pf.data.load("digits:test").tensors[0]
    bits = model.bits_per_dim(images, seed=0).mean().item()
    assert bits == pytest.approx(found["bits_per_dim"], rel=1e-5)
    assert bits < math.log2(17) - 0.7
    shuffled = images.flatten(1)[:, torch.randperm(64)].view_as(images)
    assert bits < model.bits_per_dim(shuffled, seed=0).mean().item() - 0.3


@pytest.mark.parametrize(
    ("name", "changes", "pictures"),
    [
        ("nsf", {"data": "moons", "affine": 1}, ["density.png"]),
        ("nsf", {"data": "funnel", "autoregressive": True}, ["density.png"]),
        ("maf", {"data": "8gaussians"}, ["density.png"]),
        ("realnvp", {"data": "checkerboard"}, ["density.png"]),
        ("glow", {"data": "photos", "image_size": 8, "scales": 1, "recompute": True}, ["temperatures.png"]),
        ("realnvp", {"data": "digits", "conditional": True}, ["temperatures.png", "interpolation.png"]),
        ("nsf", {"data": "digits", "dequantization": "variational"}, ["temperatures.png"]),
    ],
)  # fmt: skip
def test_presets_end_to_end(
    tmp_path: Path, capsys, name: str, changes: dict, pictures: list[str]
) -> None:
    out = tmp_path / "run"
    options = {**TINY, "steps": 3, **changes}
    words = [
        f"--{key}={str(value).lower() if value is True else value}"
        for key, value in options.items()
    ]
    assert cli.main(["train", name, "--out", str(out), *words]) == 0
    assert "bits_per_dim" in capsys.readouterr().out
    for picture in pictures:
        assert (out / picture).is_file()
    assert cli.main(["sample", str(out), "--count", "6"]) == 0
    model = pf.flow.load(out)
    torch.testing.assert_close(model.sample(6, 1)[:3], model.sample(3, 1), rtol=1e-4, atol=1e-4)


def test_presets_follow_the_kind_of_the_data() -> None:
    assert pf.flow.preset("nsf").data == "moons"
    assert pf.flow.preset("nsf", "checkerboard").data == "checkerboard"
    assert pf.flow.preset("nsf", "digits").steps == pf.flow.preset("glow").steps
    assert pf.flow.preset("realnvp", torch.zeros(5, 2)).steps == pf.flow.PRESETS["nsf"].steps
    assert pf.flow.preset("realnvp", torch.zeros(5, 1, 8, 8)).data == "photos"


def test_own_points_without_a_test_split(tmp_path: Path) -> None:
    points = pf.data.TOYS["moons"].sample(200, 5).float()
    run = train(tmp_path / "run", "nsf", data=points, steps=2, scales=None)
    found = json.loads((run.path / "test.json").read_text())
    assert found["held_out"].startswith("training data")
    assert "entropy" not in found
    with pytest.raises(ValueError, match="data must be given"):
        pf.flow.train(run.config_file, out=tmp_path / "other")


def test_bad_input(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="did you mean 'glow'"):
        pf.flow.train("glw", out=out)
    with pytest.raises(ValueError, match="data must be images for flow='glow'"):
        train(out, data="moons")
    with pytest.raises(ValueError, match="data must be points in the plane for an autoregressive"):
        train(out, "maf")
    with pytest.raises(ValueError, match=r"got items of shape \(3,\)"):
        train(out, "nsf", data=torch.zeros(20, 3))
    with pytest.raises(ValueError, match="image_size must be None for points"):
        train(out, "nsf", data="moons", image_size=8)
    with pytest.raises(ValueError, match="multiples of 16 for 4 scales, got 8 x 8"):
        train(out, scales=4)
    with pytest.raises(ValueError, match="conditional model needs labels"):
        train(out, data=torch.zeros(20, 1, 8, 8), conditional=True)
    for name, value in (
        ("flow", "glw"), ("tail_bound", 0.0), ("bins", 0), ("clip_norm", -1.0), ("dequantization", "none"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            FlowConfig(**{name: value})
    with pytest.raises(ValueError, match="image_size and channels must be given"):
        build(FlowConfig(flow="glow", image_size=8))
    assert not out.exists()
