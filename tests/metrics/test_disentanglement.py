"""Scores of disentanglement where the answer is known, against scikit-learn's mutual information, and the
shapes that they are measured on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

import pyfastgan as pf
from pyfastgan.metrics import beta_vae_score, dci, disentanglement, mutual_information_gap


def factors(count: int = 1500) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(k, (count,), generator=generator) for k in (3, 8, 5, 6)], 1)


def rotated(codes: Tensor) -> Tensor:
    """Turned so that every number has an equal part of every factor."""
    half = torch.tensor([[1.0, 1], [1, -1]])
    return (codes - codes.mean(0)) / codes.std(0) @ torch.kron(half, half) / 2


def test_a_disentangled_representation_scores_1() -> None:
    """The factors themselves, in another order, on other scales, beside a number that says nothing."""
    known = factors()
    noise = torch.randn(len(known), 1, generator=torch.Generator().manual_seed(5))
    codes = torch.cat((known[:, [2, 0, 3, 1]] * torch.tensor([1.0, -3, 0.1, 20]), noise), 1)
    assert beta_vae_score(codes, known, votes=300) > 0.99
    assert mutual_information_gap(codes, known) > 0.97
    found = dci(codes, known)
    assert found.disentanglement > 0.99
    assert found.completeness > 0.99
    assert found.informativeness > 0.99


def test_a_rotation_is_entangled() -> None:
    known = factors()
    codes = rotated(known.float())
    found = dci(codes, known)
    assert mutual_information_gap(codes, known) < 0.1
    assert found.disentanglement < 0.5
    assert found.completeness < 0.5
    assert found.informativeness > 0.7, "but nothing is lost"


def test_codes_that_say_nothing() -> None:
    known = factors()
    codes = torch.randn(len(known), 5, generator=torch.Generator().manual_seed(2))
    # A quarter is chance; 3 standard deviations of 200 votes.
    assert beta_vae_score(codes, known, votes=600) < 0.25 + 3 * (0.25 * 0.75 / 200) ** 0.5
    assert mutual_information_gap(codes, known) < 0.02
    assert dci(codes, known).informativeness == 0
    constant = disentanglement(torch.zeros(len(known), 2), known)
    assert constant["mig"] == constant["dci_disentanglement"] == constant["dci_completeness"] == 0


def test_two_numbers_that_say_the_same_leave_no_gap() -> None:
    known = factors()
    codes = torch.cat((known, known), 1).float()
    assert abs(mutual_information_gap(codes, known)) < 1e-12
    assert dci(codes, known).disentanglement > 0.99


def test_the_gap_is_scikit_learns_mutual_information() -> None:
    known = factors(700)
    codes = known.double() @ torch.randn(
        4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    bins = 7
    low, high = codes.amin(0), codes.amax(0)
    rounded = ((codes - low) / (high - low) * bins).long().clamp(max=bins - 1).numpy()
    gaps = []
    for factor in known.numpy().T:
        shared = sorted(mutual_info_score(column, factor) for column in rounded.T)
        gaps.append((shared[-1] - shared[-2]) / mutual_info_score(factor, factor))
    assert math.isclose(
        mutual_information_gap(codes, known, bins=bins), np.mean(gaps), rel_tol=0.01
    )


def test_bad_input() -> None:
    known = factors(50)
    with pytest.raises(ValueError, match=r"codes must be of shape \(N, D\)"):
        dci(torch.zeros(49, 2), known)
    with pytest.raises(ValueError, match="codes must be finite"):
        beta_vae_score(torch.full((50, 2), math.nan), known)
    with pytest.raises(ValueError, match="factors must be int64"):
        dci(torch.zeros(50, 2), known.float())
    with pytest.raises(ValueError, match=r"every factor must vary, got one value of factor \[1\]"):
        dci(torch.zeros(50, 2), known * torch.tensor([1, 0, 1, 1]))
    with pytest.raises(ValueError, match="at least 2 numbers"):
        mutual_information_gap(torch.zeros(50, 1), known)
    with pytest.raises(ValueError, match="bins must be at least 2"):
        mutual_information_gap(torch.zeros(50, 2), known, bins=1)
    with pytest.raises(ValueError, match="factors must be at least 2"):
        dci(torch.zeros(50, 2), known[:, :1])


def test_shapes_are_drawn_by_their_factors() -> None:
    """Centre, size and turn of each image, measured from its moments."""
    images = (pf.data.load("shapes", size=48).stored[0][:, 0].double() / 255).flatten(1)
    known = pf.data.shape_factors()
    assert images.shape == (6144, 48 * 48)
    axis = (torch.arange(48) + 0.5) / 48 * 2 - 1
    y, x = (part.flatten().double() for part in torch.meshgrid(axis, axis, indexing="ij"))
    area = images.sum(1)
    across, down = (images @ x) / area, (images @ y) / area
    torch.testing.assert_close(across, known[:, 3].double() / 7 - 0.5, atol=0.01, rtol=0)
    torch.testing.assert_close(down, known[:, 4].double() / 7 - 0.5, atol=0.01, rtol=0)
    radius = 0.2 + 0.05 * known[:, 1]
    full = torch.tensor([1.6**2, math.pi / 2, 3 * 3**0.5 / 4]).double()[known[:, 0]]
    torch.testing.assert_close(area * (2 / 48) ** 2, full * radius**2, atol=0, rtol=0.08)
    ellipse = known[:, 0] == 1
    u, v = x - across[ellipse, None], y - down[ellipse, None]
    weight = images[ellipse]
    xx, yy, xy = ((weight * part).sum(1) for part in (u * u, v * v, u * v))
    turn = 0.5 * torch.atan2(2 * xy, xx - yy) % math.pi
    expected = known[ellipse, 2] * math.pi / 16
    apart = (turn - expected + math.pi / 2) % math.pi - math.pi / 2
    assert apart.abs().max() < 0.03
    splits = [pf.data.load(f"shapes:{part}", size=16) for part in ("train", "test")]
    assert [len(part) for part in splits] == [5120, 1024]
    joined = torch.cat([pf.data.shape_factors(part) for part in ("train", "test")])
    assert len(joined.unique(dim=0)) == 6144
    assert torch.equal(splits[1].stored[1], pf.data.shape_factors("test")[:, 0])
    for bad in ({"size": 15}, {"split": "val"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            pf.data.load("shapes", **bad)


def test_a_run_on_shapes_reports_the_scores(tmp_path: Path) -> None:
    options = {"accelerator": "cpu", "sample_every": 0, "sample_count": 4, "test_samples": 1}
    run = pf.vae.train(
        "beta-vae", data="shapes", out=tmp_path, image_size=16, steps=2, latent_dim=3, **options
    )
    assert run.config.data == "shapes:train"
    found = json.loads((run.path / "test.json").read_text())
    model, test = pf.vae.load(run), pf.data.load("shapes:test", size=16)
    x = model.observe(test[:][0], 0, stream=1)
    expected = disentanglement(model.encode(x)[0], pf.data.shape_factors("test"))
    assert expected.keys() < found.keys()
    assert math.isclose(found["mig"], expected["mig"], abs_tol=1e-3)
