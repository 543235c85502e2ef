"""A linear autoencoder against scikit-learn's principal components; training both kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.vae import AutoencoderConfig, linear_autoencoder

TINY = {
    "accelerator": "cpu",
    "sample_every": 0,
    "sample_count": 4,
    "latent_dim": 4,
}


def test_a_linear_autoencoder_spans_the_principal_components() -> None:
    torch.manual_seed(0)
    spread = torch.tensor([4.0, 3.0, 2.0, 0.7, 0.5, 0.3, 0.2, 0.1]).double()
    turn = torch.linalg.qr(torch.randn(8, 8).double()).Q
    x = (torch.randn(300, 8).double() * spread) @ turn + torch.randn(8).double()
    model = linear_autoencoder(8, 3).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = model(x)[1].mean()
        value.backward()
        return value

    optimizer.step(loss)
    pca = PCA(3).fit(x.numpy())
    components = torch.from_numpy(pca.components_)
    basis = torch.linalg.qr(model.decoder.weight.detach()).Q
    torch.testing.assert_close(basis @ basis.T, components.T @ components, atol=1e-4, rtol=0)
    made, error = model(x)
    best = torch.from_numpy(pca.inverse_transform(pca.transform(x.numpy())))
    torch.testing.assert_close(made, best, atol=1e-3, rtol=0)
    torch.testing.assert_close(error.mean(), (best - x).square().sum(1).mean(), rtol=1e-6, atol=0)


def test_samples_have_the_moments_of_the_codes() -> None:
    torch.manual_seed(0)
    model, x = linear_autoencoder(6, 2), torch.randn(500, 6)
    for _ in range(3):  # the average of equal batches is any one's
        model(x)
    codes = model.encoder(x).detach()
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made = model.eval().sample(20_000, 1)
    torch.testing.assert_close(seen[0].mean(0), codes.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(seen[0].T.cov(), codes.T.cov(correction=0), atol=0.02, rtol=0.05)
    assert made.abs().max() <= 1
    torch.testing.assert_close(model.sample(3, 1), made[:3])
    before = model.mean.clone()
    model(x + 1)
    assert torch.equal(before, model.mean), "evaluation leaves the moments"


def test_a_linear_one_from_the_command_line_reaches_the_principal_components(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    options = {**TINY, "steps": 600, "batch_size": 600, "learning_rate": 0.01, "ema_decay": 0.0}
    words = [f"--{key}={value}" for key, value in options.items()]
    assert cli.main(["train", "linear-autoencoder", "--out", str(out), *words]) == 0
    assert cli.main(["sample", str(out), "--count", "4"]) == 0
    train, test = (
        pf.data.load(f"digits:{part}").tensors[0].flatten(1).numpy() for part in ("train", "test")
    )
    pca = PCA(4).fit(train)
    best = ((pca.inverse_transform(pca.transform(test)) - test) ** 2).mean()
    found = json.loads((out / "test.json").read_text())
    assert found["held_out"] == "the test split"
    assert found["images"] == 597
    # 1,200 steps would bring it to 1%.
    assert math.isclose(found["mse"], best, rel_tol=0.05)


def test_a_perceptron_end_to_end(tmp_path: Path) -> None:
    """A step descends the mean squared error of an image; a resumed run has the same bits."""

    def train(out: str, steps: int, **more) -> pf.training.Run:
        options = {**TINY, "width": 32, "batch_size": 50, "learning_rate": 3e-3, "ema_decay": 0.9}
        return pf.vae.train("autoencoder", out=tmp_path / out, steps=steps, **options, **more)

    whole = train("whole", 160)
    train("parts", 80)
    parts = train("parts", 160, resume=True)
    assert whole.config.network == "mlp"
    for name in ("weights.safetensors", "test.json", "samples.png", "reconstructions.png"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()
    images = pf.data.load("digits:test").tensors[0]
    model = pf.vae.load(whole)
    error = (model.reconstruct(images) - images).square().mean().item()
    found = json.loads((whole.path / "test.json").read_text())
    assert math.isclose(found["mse"], error, rel_tol=1e-5)
    assert error < 0.8 * images.var(0).mean()
    assert math.isclose(whole.history[-1]["loss"], 64 * error, rel_tol=0.3)
    assert (
        pf.vae.train(AutoencoderConfig(**TINY, steps=1), out=tmp_path / "x").name == "autoencoder"
    )


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        AutoencoderConfig(network="linea")
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        AutoencoderConfig(latent_dim=0)
    for latent in (0, 9):
        with pytest.raises(ValueError, match=r"latent_dim must lie in \[1, features=8\]"):
            linear_autoencoder(8, latent)
