"""Training a tiny DCGAN: the steps of both players, exact resumption, the run folder, and bad
input."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import pyfastgan as pf
from pyfastgan.gan import GAN, PRESETS, GANConfig
from pyfastgan.gan.objectives import OBJECTIVES

TINY = {
    "image_size": 8,
    "channels": 1,
    "width": 4,
    "latent_dim": 6,
    "batch_size": 8,
    "accelerator": "cpu",
    "log_every": 20,
    "sample_every": 0,
    "sample_count": 4,
}
FABRIC = SimpleNamespace(global_rank=0, backward=lambda loss: loss.backward())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def system(**changes) -> GAN:
    return GAN(GANConfig(**{**TINY, **changes}))


def batch() -> tuple[Tensor]:
    return (torch.rand(8, 1, 8, 8) * 2 - 1,)


def weights(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def moved(before: list[Tensor], network: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_k_discriminator_steps_for_one_of_the_generator() -> None:
    gan = system(discriminator_steps=3)
    turns = []
    for step in range(1, 8):
        before = {name: weights(network) for name, network in gan.networks.items()}
        losses = gan.training_step(FABRIC, batch(), step)
        assert moved(before["discriminator"], gan.networks["discriminator"])
        turns.append(moved(before["generator"], gan.networks["generator"]))
        assert ("generator_loss" in losses) == turns[-1]
        assert not any(loss.requires_grad for loss in losses.values())
    assert turns == [False, False, True, False, False, True, False]


def test_the_discriminator_is_frozen_in_the_generators_turn() -> None:
    """No weight gradients of it are computed there, the generator still gets its own."""
    gan = system()
    discriminator = gan.networks["discriminator"]
    passes = []
    discriminator.register_forward_pre_hook(
        lambda module, _: passes.append(all(p.requires_grad for p in module.parameters()))
    )
    touched = []
    for parameter in discriminator.parameters():
        parameter.register_hook(touched.append)
    optimizer = gan.optimizers["discriminator"]
    seen_by_generator = []
    step = gan.optimizers["generator"].step

    def generator_step() -> None:
        seen_by_generator.append(len(touched))
        assert all(
            p.grad is not None and p.grad.any() for p in gan.networks["generator"].parameters()
        )
        step()

    gan.optimizers["generator"].step = generator_step
    optimizer.register_step_pre_hook(lambda *_: seen_by_generator.append(len(touched)))
    gan.training_step(FABRIC, batch(), 1)
    assert passes == [True, True, False]
    assert seen_by_generator[0] == seen_by_generator[1] == len(list(discriminator.parameters()))
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


def test_a_step_is_algorithm_1_written_out() -> None:
    """Against the two players' updates by hand, with the noise of the step."""
    gan, hand = system(), system()
    for name, network in hand.networks.items():
        network.load_state_dict(gan.networks[name].state_dict())
    generator, discriminator = hand.networks["generator"], hand.networks["discriminator"]
    (real,) = batch()
    losses = gan.training_step(FABRIC, (real,), 5)

    fake = generator(pf.ops.random_normal((8, 6), 0, stream=5))
    entropy = nn.BCEWithLogitsLoss()
    loss = entropy(discriminator(real), torch.ones(8))
    loss = loss + entropy(discriminator(fake.detach()), torch.zeros(8))
    loss.backward()
    torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999)).step()
    torch.testing.assert_close(losses["discriminator_loss"], loss.detach())
    loss = entropy(discriminator(fake), torch.ones(8))
    loss.backward()
    torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999)).step()
    torch.testing.assert_close(losses["generator_loss"], loss.detach())
    for name, network in hand.networks.items():
        ours = gan.networks[name].state_dict()
        for key, value in network.state_dict().items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6, msg=f"{name}.{key}")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(objective: str) -> None:
    gan = system(objective=objective)
    losses = [gan.training_step(FABRIC, batch(), step) for step in (1, 2, 3)]
    assert all(value.isfinite() for row in losses for value in row.values())


def test_an_objective_that_pairs_judges_real_images_for_the_generator() -> None:
    gan = system(objective="relativistic")
    passes = []
    gan.networks["discriminator"].register_forward_pre_hook(lambda _, args: passes.append(args[0]))
    (real,) = batch()
    gan.training_step(FABRIC, (real,), 1)
    assert [torch.equal(x, real) for x in passes] == [True, False, True, False]


def test_noise_depends_on_the_place_in_the_global_batch_alone() -> None:
    """Two ranks with half a batch each draw the noise of one rank with the whole batch."""
    drawn = []
    for rank, count in ((0, 8), (0, 4), (1, 4)):
        gan = system()
        gan.networks["generator"].register_forward_pre_hook(lambda _, args: drawn.append(args[0]))
        fabric = SimpleNamespace(global_rank=rank, backward=FABRIC.backward)
        gan.training_step(fabric, (batch()[0][:count],), 3)
    assert torch.equal(drawn[0], torch.cat(drawn[1:]))


def train(out: Path, **changes) -> pf.training.Run:
    return pf.gan.train(TINY, out=out, **{"checkpoint_every": 100, **changes})


def test_a_stopped_and_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", steps=200, discriminator_steps=2)
    train(tmp_path / "parts", steps=100, discriminator_steps=2)
    torch.manual_seed(123)
    parts = train(tmp_path / "parts", steps=200, discriminator_steps=2, resume=True)

    states = [torch.load(run.checkpoint, weights_only=True) for run in (whole, parts)]
    assert states[0]["step"] == 200
    for part in ("networks", "average", "optimizers"):
        compare(states[0][part], states[1][part], part)
    compare(load_file(whole.weights), load_file(parts.weights), "weights")
    assert whole.samples.read_bytes() == parts.samples.read_bytes()
    for ours, theirs in zip(whole.history, parts.history, strict=True):
        for key in ("step", "discriminator_loss", "generator_loss"):
            assert ours[key] == theirs[key]


def compare(left, right, where: str) -> None:
    """Equal structure, and equal tensors to the last bit."""
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key, value in left.items():
            compare(value, right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, value in enumerate(left):
            compare(value, right[index], f"{where}[{index}]")
    else:
        assert left == right, where


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    runs = [train(tmp_path / str(seed), steps=2, seed=seed) for seed in (0, 1)]
    assert not torch.equal(*(pf.gan.load(run).main[0].conv.weight for run in runs))


def test_a_run_and_its_generator(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=20)
    generator = pf.gan.load(run)
    assert not generator.training
    images = generator.sample(5, seed=3)
    assert images.shape == (5, 1, 8, 8)
    assert torch.equal(images, pf.gan.load(str(run.path)).sample(5, seed=3))
    torch.testing.assert_close(generator.sample(2, seed=3), images[:2])
    assert not torch.equal(images, generator.sample(5, seed=4))

    picture = Image.open(run.path / "interpolation.png")
    assert picture.size == (10 * 34 + 2, 8 * 34 + 2)
    (row,) = run.history
    assert {"discriminator_loss", "generator_loss", "images_per_second"} <= row.keys()
    assert run.samples.is_file()


def test_a_tensor_and_a_data_set_train_alike(tmp_path: Path) -> None:
    images = torch.rand(24, 3, 16, 16) * 2 - 1
    changes = {"image_size": 16, "channels": 3, "steps": 3, "log_every": 1}
    first = train(tmp_path / "tensor", data=images, **changes)
    second = train(tmp_path / "set", data=torch.utils.data.TensorDataset(images), **changes)
    losses = [[row["generator_loss"] for row in run.history] for run in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_defaults_are_the_papers() -> None:
    config = GANConfig()
    assert (config.learning_rate, config.betas, config.latent_dim) == (2e-4, (0.5, 0.999), 100)


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        ("digits", {}, (16, 1)),
        ("photos", {}, (32, 3)),
        ("photos", {"image_size": 8}, (8, 3)),
        (torch.zeros(8, 3, 8, 8), {}, (8, 3)),
    ],
    ids=str,
)
def test_the_networks_follow_the_data(tmp_path: Path, data, changes, expected) -> None:
    changes = {"width": 2, "batch_size": 8, "steps": 1, "accelerator": "cpu", **changes}
    run = pf.gan.train("dcgan", data=data, out=tmp_path / "run", **changes)
    size, channels = expected
    assert (run.config.image_size, run.config.channels) == expected
    assert pf.gan.load(run).sample(2, seed=0).shape == (2, channels, size, size)


def test_a_folder_is_resized_to_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.new("RGB", (20 + index, 30), (255, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    data = f"folder:{tmp_path / 'images'}"
    changes = {"width": 2, "batch_size": 8, "steps": 1, "accelerator": "cpu"}
    with pytest.raises(ValueError, match="choose one to resize them to"):
        pf.gan.train("dcgan", data=data, out=tmp_path / "run", **changes)
    run = pf.gan.train("dcgan", data=data, out=tmp_path / "run", image_size=32, **changes)
    assert run.config.channels == 3
    with pytest.raises(ValueError, match=r"shape \(1, 32, 32\), got items of shape \(3, 32, 32\)"):
        pf.gan.train(run.config, out=tmp_path / "grey", channels=1)


def test_networks_without_a_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size and channels must be given where there are"):
        GAN(PRESETS["dcgan"])


def test_bad_configuration(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        ValueError,
        match=r"preset must be one of dcgan, .*r3gan, .*, got 'dcgn'; did you mean 'dcgan'",
    ):
        pf.gan.train("dcgn", out=out)
    with pytest.raises(ValueError, match="did you mean 'latent_dim'"):
        pf.gan.train("dcgan", out=out, latent_dims=3)
    with pytest.raises(ValueError, match="did you mean 'hinge'"):
        train(out, objective="hing")
    with pytest.raises(ValueError, match="image_size must be one of 8, 16, 32, 64, 128, got 28"):
        train(out, image_size=28)
    with pytest.raises(ValueError, match="discriminator_steps must be at least 1, got 0"):
        train(out, discriminator_steps=0)
    with pytest.raises(ValueError, match="learning_rate"):
        train(out, learning_rate=-1.0)
    with pytest.raises(ValueError, match="betas must be below 1"):
        train(out, betas=(0.5, 1.0))
    assert not out.exists()


def test_bad_data(tmp_path: Path) -> None:
    out = tmp_path / "run"
    images = torch.zeros(16, 3, 8, 8)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), got items of shape \(3, 8, 8\)"):
        train(out, data=images)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), got items of shape \(2,\)"):
        train(out, data="moons")
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        train(out, data="digit")
    with pytest.raises(ValueError, match="1 item"):
        train(out, data=images[:1, :1])
    with pytest.raises(ValueError, match="data must be given"):
        pf.gan.train({**TINY, "data": "given in Python"}, out=out)
    assert not out.exists()


def test_resuming_another_architecture_is_refused(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=2)
    before = run.checkpoint.read_bytes()
    with pytest.raises(ValueError, match="width was 4, now 5"):
        train(run.path, steps=4, width=5, resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        train(run.path, steps=4)
    assert run.checkpoint.read_bytes() == before


def test_loading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        pf.gan.load(tmp_path)
