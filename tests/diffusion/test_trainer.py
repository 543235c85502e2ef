"""Training tiny models: presets, resuming, ranks, latent vectors, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.diffusion import PRESETS, DiffusionConfig, preset
from pyfastgan.diffusion.animation import points_frames
from pyfastgan.training.checkpoint import load_checkpoint

TINY = {
    "batch_size": 16,
    "width": 8,
    "accelerator": "cpu",
    "log_every": 5,
    "sample_every": 0,
    "checkpoint_every": 5,
    "sample_count": 4,
    "sampler_steps": 3,
}
HERE = Path(__file__)
ALL_OPTIONS = {
    "learned_variance": True,
    "prediction": "v",
    "schedule": "cosine",
    "levels": 100,
    "weighting": "min-snr",
    "self_conditioning": True,
    "conditional": True,
    "guidance": 2.0,
    "ema_snapshots": 4,
}


def train(out, name="ddpm", data="digits", **changes):
    return pf.diffusion.train(name, data=data, out=out, **{**TINY, "steps": 10, **changes})


def tensors(run):
    return load_checkpoint(run.checkpoint)["networks"]


def same(one, other):
    assert one.keys() == other.keys()
    for name, network in one.items():
        for key, value in network.items():
            torch.testing.assert_close(other[name][key], value)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run with every option on, without interruption."""
    return train(tmp_path_factory.mktemp("digits") / "run", **ALL_OPTIONS)


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A run over points."""
    return train(tmp_path_factory.mktemp("moons") / "run", "ot-cfm", "moons")


def test_a_run_folder(digits, moons):
    for run, size in ((digits, None), (moons, (320, 320))):
        with Image.open(run.path / "sampling.gif") as file:
            assert file.is_animated
            assert size in (None, file.size)
            assert file.n_frames > 2
        assert run.samples.is_file()
        assert {"model"} == {key.split(".")[0] for key in load_file(run.weights)}
    assert digits.config.data == "digits:train"
    assert (digits.config.multipliers, digits.config.pixel_values) == ((1, 2), 17)
    assert (moons.config.dim, moons.config.network) == (2, "mlp")
    row = digits.history[-1]
    assert row["loss"] == pytest.approx(row["error"] + 0.001 * row["bound"], rel=1e-4)


def test_resuming_gives_the_same_bits(digits, tmp_path):
    train(tmp_path / "run", **{**ALL_OPTIONS, "steps": 5})
    resumed = train(tmp_path / "run", resume=True, **ALL_OPTIONS)
    assert digits.weights.read_bytes() == resumed.weights.read_bytes()
    one, other = tensors(digits), tensors(resumed)
    for name, network in one.items():
        for key, value in network.items():
            assert torch.equal(value, other[name][key]), (name, key)
    name = "averages/step-00000008.safetensors"
    assert (digits.path / name).read_bytes() == (resumed.path / name).read_bytes()


def test_averages_are_stored_and_made_into_others(digits):
    files = sorted(file.name for file in (digits.path / "averages").iterdir())
    assert files == [f"step-{step:08d}.safetensors" for step in (4, 8, 10)]
    usual, wide = pf.diffusion.load(digits), pf.diffusion.load(digits, ema=0.1)
    state = tensors(digits)["width100"]
    for key, value in wide.state_dict().items():
        torch.testing.assert_close(value, state[key])
    assert not torch.equal(usual.sample(2, 1, steps=3), wide.sample(2, 1, steps=3))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name, tmp_path):
    """Each for points and for images; of points in their own units."""
    assert preset(name).objective == preset(name, "moons").objective
    assert preset(name, "digits").batch_size == preset(name, torch.zeros(9, 1, 8, 8)).batch_size
    points = 30 + 4 * torch.randn(64, 2)
    run = train(tmp_path / "run", name, points, steps=3)
    model = pf.diffusion.load(run)
    assert float(model.shift) == pytest.approx(30, abs=1)
    unit = 2.0 if name == "edm" else 1.0
    assert float(model.scale) == pytest.approx(4 * unit, rel=0.2)
    drawn = model.sample(200, 0)
    assert (drawn.median(0).values - 30).abs().max() < 6


def test_two_ranks_train_what_one_does(tmp_path):
    """On gloo, with resuming on one; a part of the options, as the optimal coupling is one of each rank's part."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = of_ranks(tmp_path / "one", 1)
    same(tensors(one), load_checkpoint(tmp_path / "two/checkpoints/last.ckpt")["networks"])


def of_ranks(out, devices):
    return train(out, data="digits", steps=4, devices=devices, conditional=True, ema_snapshots=2)


def test_images_of_a_seed_range_on_two_ranks(digits, tmp_path, monkeypatch):
    """The same files from one process in batches of 2, and from two processes in batches of 5."""
    words = ["sample", str(digits.path), "--seeds", "3-9", "--steps", "3", "--sampler", "ddpm"]
    assert cli.main([*words, "--batch", "2", "--out", str(tmp_path / "one")]) == 0
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert cli.main([*words, "--batch", "5", "--out", str(tmp_path / "two")]) == 0
    names = [f"{seed:06d}.png" for seed in range(3, 10)]
    for folder in ("one", "two"):
        assert sorted(file.name for file in (tmp_path / folder).iterdir()) == names
    for name in names:
        one, two = (np.asarray(Image.open(tmp_path / f / name)).astype(int) for f in ("one", "two"))
        assert abs(one - two).max() <= 1  # of 255, at a rounding


def test_sampling_from_the_command_line(digits, moons, tmp_path):
    out = str(tmp_path / "a")
    for run, words in (
        (digits, ["--count", "3", "--sampler", "dpmpp-3m", "--steps", "4", "--out", f"{out}.png"]),
        (digits, ["--guidance", "3", "--rescale", "0.7", "--label", "4", "--count", "2"]),
        (digits, ["--ema", "0.08", "--sampler", "ddim", "--eta", "0.5", "--out", f"{out}.gif"]),
        (moons, ["--seeds", "0-6", "--out", f"{out}.npz"]),
        (moons, ["--out", f"{out}2.gif", "--steps", "3"]),
    ):
        assert cli.main(["sample", str(run.path), *words]) == 0
    with np.load(f"{out}.npz") as found:
        assert found["points"].shape == (7, 2)
        assert found["seeds"].tolist() == list(range(7))
        whole = pf.diffusion.load(moons).sample(7, torch.arange(7))
        np.testing.assert_allclose(found["points"], whole.numpy(), rtol=1e-4, atol=1e-4)


def test_inpainting_from_the_command_line(digits, tmp_path, capsys):
    known, mask = np.full((8, 8), 200, np.uint8), np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    for name, picture in (("known", known), ("mask", mask), ("wide", np.zeros((8, 9), np.uint8))):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    words = ["sample", str(digits.path), "--seeds", "0-1", "--known", str(tmp_path / "known.png")]
    words += ["--sampler", "ddpm", "--steps", "4", "--repeats", "2", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--mask", str(tmp_path / "mask.png")]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "000001.png"))
    assert (found[:4] == 200).all()
    assert (found[4:] != 200).any()
    assert cli.main([*words, "--mask", str(tmp_path / "wide.png")]) == 2
    error = capsys.readouterr().err
    assert "--mask must be of 8 x 8 pixels like the model's images, got 9 x 8" in error


def test_likelihoods_from_the_command_line(digits, moons, capsys):
    words = ["evaluate", str(digits.path), "--likelihood", "vlb,ode", "--samples", "2"]
    assert cli.main([*words, "--terms", "5"]) == 0
    record = json.loads((digits.path / "likelihood.json").read_text())
    assert record["held_out"] == "the test split of digits:train"
    # An untrained model: more than the 4.1 bits of 17 equal values.
    assert 1 < record["ode"]["bits_per_dim"] < 20
    assert record["vlb"]["bits_per_dim"] > 1
    assert cli.main(["evaluate", str(moons.path), "--likelihood", "ode", "--samples", "20"]) == 0
    record = json.loads((moons.path / "likelihood.json").read_text())
    # An untrained flow is about the normal density; the entropy is 1.0076 nats.
    assert 1.0 < record["ode"]["nats"] < 3.5
    assert "bits/dim" in capsys.readouterr().out


def test_latent_vectors_of_another_run(tmp_path, monkeypatch):
    other = tmp_path / "codes"
    other.mkdir()
    (other / "config.yaml").write_text("model: vae\ndata: digits:train\n")
    codes = torch.randn(40, 3) + 5
    labels = torch.arange(40) % 4
    save_file(
        {"train": codes, "test": codes[:8].clone(), "labels_train": labels},
        other / "codes.safetensors",
    )

    def decode(z):
        return z[:, :1, None, None].expand(-1, 1, 8, 8) / 20

    run = train(tmp_path / "run", data=None, codes=str(other), decode=decode, conditional=True)
    assert (run.config.dim, run.config.classes, run.config.data) == (3, 4, "digits:train")
    model = pf.diffusion.load(run, decode=decode)
    assert model.sample(5, 1).shape == (5, 1, 8, 8)
    assert pf.diffusion.load(run).sample(5, 1).shape == (5, 3)
    save_file({"train": torch.zeros(4, 2, 2, dtype=torch.int64)}, other / "codes.safetensors")
    with pytest.raises(ValueError, match=r"train must be latent vectors.*got torch.int64"):
        train(tmp_path / "other", data=None, codes=str(other))
    with pytest.raises(ValueError, match="holds no codes"):
        train(tmp_path / "other", data=None, codes=str(tmp_path))


def test_a_latent_model_of_a_vae(tmp_path):
    """Through files and the command line."""
    vae = [
        "train",
        "vae",
        "--steps",
        "2",
        "--width",
        "8",
        "--latent_dim",
        "3",
        "--batch_size",
        "16",
    ]
    small = ["--accelerator", "cpu", "--sample_count", "4"]
    assert cli.main([*vae, "--test_samples", "2", *small, "--out", str(tmp_path / "vae")]) == 0
    words = ["train", "flow-matching", "--codes", str(tmp_path / "vae"), "--steps", "2"]
    assert cli.main([*words, *small, "--width", "8", "--out", str(tmp_path / "prior")]) == 0
    out = tmp_path / "grid.png"
    assert cli.main(["sample", str(tmp_path / "prior"), "--count", "4", "--out", str(out)]) == 0
    assert out.is_file()


def test_points_are_drawn_where_they_are():
    data = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).repeat(50, 1)
    frames = points_frames([torch.tensor([[1.0, 1.0], [50.0, 0.0], [float("nan"), 0.0]])], data)
    blue = np.argwhere((frames[0] == (31, 119, 180)).all(2))
    assert len(blue) == 4
    assert blue.mean(0) == pytest.approx([36, 283], abs=4)  # up and right
    assert ((frames[0] == 190).all(2)).sum() >= 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"objective": "edm", "prediction": "v"}, "prediction belongs to objective 'diffusion'"),
        ({"objective": "flow", "learned_variance": True}, "learned_variance belongs to objective"),
        ({"coupling": "optimal"}, "coupling 'optimal' belongs to objective 'flow'"),
        ({"zero_terminal_snr": True}, "prediction must be x0 or v with zero_terminal_snr"),
        ({"guidance": 2.0}, "guidance must be None for an unconditional model, got 2.0"),
        ({"objective": "score"}, "objective must be one of diffusion, edm, flow"),
        ({"sampler": "dpmpp-3"}, "sampler must be one of .*did you mean 'dpmpp-3"),
        ({"label_dropout": 1.0}, "label_dropout must be below 1"),
        ({"levels": 1}, "levels must be at least 2, got 1"),
    ],
)
def test_configurations_that_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        replace(DiffusionConfig(), **changes)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "dpm"], "unknown preset 'dpm'; did you mean 'ddpm'?"),
        (["train", "ddpm", "--data", "moons", "--network", "unet"], "network must be 'mlp'"),
        (["train", "ddpm", "--data", "digits", "--image_size", "9"], "size must be a multiple of"),
        (["train", "ddpm", "--data", "moons", "--conditional", "true"], "the data have no labels"),
        (["sample", "RUN", "--truncation", "0.5"], "--truncation is for samples of latent vectors"),
        (["sample", "RUN", "--guidance", "2"], "guidance must be None for an unconditional model"),
        (["sample", "RUN", "--sampler", "dpmpp-3m", "--steps", "0"], "steps must be at least 1"),
        (["sample", "RUN", "--seeds", "9-3"], "--seeds must be A-B with A at most B, got '9-3'"),
        (["sample", "RUN", "--known", "x.png"], "--known and --mask must be given together"),
        (["sample", "RUN", "--ema", "0.1"], "holds no stored averages"),
        (["sample", "RUN", "--out", "x.jpg"], "--out must be a .png or a .gif file, got x.jpg"),
        (["evaluate", "RUN", "--likelihood", "elbo"], "--likelihood must be some of vlb, ode"),
        (["evaluate", "RUN", "--likelihood", "vlb"], "method must be 'ode'"),
    ],
)
def test_mistakes_on_the_command_line(words, text, moons, tmp_path, capsys):
    words = [str(moons.path) if word == "RUN" else word for word in words]
    if words[0] == "train":
        words += ["--out", str(tmp_path / "run"), "--steps", "1"]
    assert cli.main(words) == 2
    assert text in capsys.readouterr().err


if __name__ == "__main__":
    of_ranks(Path(sys.argv[1]), 2)
