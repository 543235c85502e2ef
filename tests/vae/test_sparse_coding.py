"""Sparse coding against scikit-learn's codes and dictionary, and from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.decomposition import sparse_encode

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.vae import AutoencoderSystem, SparseCoding, SparseCodingConfig, sparse_codes

FABRIC = SimpleNamespace(backward=lambda loss: loss.backward())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def objective(x, codes, dictionary, penalty: float) -> float:
    return (
        (0.5 * (x - codes @ dictionary).square().sum(1) + penalty * codes.abs().sum(1))
        .mean()
        .item()
    )


@pytest.mark.parametrize("atoms", [5, 20])
def test_codes_are_the_lasso_minimum(atoms: int) -> None:
    """Fewer and more atoms than numbers. Least angle regression finds the minimum exactly."""
    x = torch.randn(30, 8).double()
    dictionary = torch.nn.functional.normalize(torch.randn(atoms, 8).double())
    exact = torch.from_numpy(
        sparse_encode(x.numpy(), dictionary.numpy(), algorithm="lasso_lars", alpha=0.3)
    )
    codes = sparse_codes(x, dictionary, 0.3, iterations=2000)
    torch.testing.assert_close(codes, exact, atol=1e-6, rtol=0)
    assert torch.equal(codes == 0, exact.abs() < 1e-9)
    few = sparse_codes(x, dictionary, 0.3, iterations=50)
    best = objective(x, exact, dictionary, 0.3)
    assert best <= objective(x, few, dictionary, 0.3) < 1.002 * best
    assert not sparse_codes(x, dictionary, 100.0).any(), "a large penalty leaves nothing"


def test_no_code_is_nan_of_an_empty_dictionary() -> None:
    codes = sparse_codes(torch.randn(3, 4), torch.zeros(2, 4), 0.1)
    assert torch.equal(codes, torch.zeros(3, 2))


def test_a_dictionary_as_good_as_the_one_that_made_the_data() -> None:
    """A quarter of twelve atoms each. The mean is part of the model, so it can be a little better."""
    atoms = torch.nn.functional.normalize(torch.randn(12, 9))
    codes = torch.randn(150, 12) * (torch.rand(150, 12) < 0.25)
    data = (codes @ atoms).view(150, 1, 3, 3)
    data = data / data.abs().max()
    flat, penalty = data.flatten(1), 0.02
    config = SparseCodingConfig(
        image_size=3, channels=1, atoms=12, penalty=penalty, learning_rate=0.02
    )
    system = AutoencoderSystem(config, pf.data.load(data), None)
    model = system.networks["model"]
    assert isinstance(model, SparseCoding)
    for step in range(400):
        loss = system.training_step(FABRIC, (data,), step)["loss"]
    assert model.dictionary.norm(dim=1).max() <= 1 + 1e-6
    best = objective(flat, sparse_codes(flat, atoms, penalty), atoms, penalty)
    # It ends in a local minimum; scikit-learn's `DictionaryLearning` in one at 1.15.
    assert 0.9 * best < loss.item() < 1.15 * best


def test_digits_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = {"accelerator": "cpu", "sample_every": 0, "sample_count": 4, "atoms": 40}
    options |= {"steps": 40, "batch_size": 100, "learning_rate": 0.02}
    words = [f"--{key}={value}" for key, value in options.items()]
    assert cli.main(["train", "sparse-coding", "--out", str(out), *words]) == 0
    assert cli.main(["sample", str(out), "--count", "4"]) == 0
    assert (out / "dictionary.png").is_file()
    found, model = json.loads((out / "test.json").read_text()), pf.vae.load(out)
    images = pf.data.load("digits:test").tensors[0]
    codes = model.encode(images)
    made = model.decode(codes)
    assert math.isclose(found["mse"], (made - images).square().mean().item(), rel_tol=1e-4)
    assert math.isclose(found["atoms_used"], (codes != 0).sum(1).float().mean(), rel_tol=1e-3)
    written = 0.5 * (made - images).square().flatten(1).sum(1) + 0.5 * codes.abs().sum(1)
    assert math.isclose(found["objective"], written.mean().item(), rel_tol=1e-4)
    assert found["mse"] < 0.7 * images.var(0).mean()
    # Samples have Laplace codes of the magnitudes seen.
    seen: list[torch.Tensor] = []
    zeros = torch.zeros(20_000, 1, 8, 8)
    model.decode = lambda codes: seen.append(codes) or zeros
    model.sample(20_000, 1)
    model.sample(3, 1)
    torch.testing.assert_close(seen[0].abs().mean(0), model.magnitudes, atol=0.003, rtol=0.05)
    torch.testing.assert_close(seen[0].square().mean(0), 2 * model.magnitudes**2, rtol=0.15, atol=0)
    torch.testing.assert_close(seen[0][:3], seen[1])


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"x must be of shape \(N, D\)"):
        sparse_codes(torch.zeros(2, 3), torch.zeros(4, 5), 0.1)
    with pytest.raises(ValueError, match="penalty must be above 0, got 0"):
        sparse_codes(torch.zeros(2, 3), torch.zeros(4, 3), 0)
    with pytest.raises(ValueError, match="penalty must be above 0"):
        SparseCodingConfig(penalty=0.0)
    with pytest.raises(ValueError, match="atoms must be at least 1"):
        SparseCoding((1, 2, 2), 0, penalty=0.1)
