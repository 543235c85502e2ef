"""`pyfastgan evaluate` and latent arithmetic on a small GAN."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pyfastgan as pf
from pyfastgan import cli
from pyfastgan.metrics import METRICS, digits_classifier, evaluate

TINY = ["--width", "4", "--latent_dim", "8", "--steps", "30", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    words = ["--data", "digits:train", "--image_size", "8", "--out", str(out)]
    assert cli.main(["train", "dcgan", *TINY, *words]) == 0
    return out


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyfastgan: error: ")
    assert err.count("\n") == 1
    return err


def test_evaluate_prints_a_table_and_writes_json(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "evaluation.json").read_text())
    samples = pf.gan.load(run).sample(597, 1)
    expected = evaluate(samples, pf.data.load("digits", split="test"), digits_classifier(8))
    assert record["scores"] == pytest.approx(expected.scores)
    assert list(record["scores"]) == list(METRICS)
    assert record["extractor"] == expected.extractor
    assert (record["samples"], record["reference"]) == (597, 597)
    assert (record["data"], record["seen_in_training"]) == ("digits:train", False)
    assert out.startswith(str(expected))
    assert out.endswith(f"real images: digits:train, its test split\n{run / 'evaluation.json'}\n")


def test_evaluate_takes_other_data_features_and_metrics(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=images)
    words = ["--data", f"npz:{tmp_path / 'x.npz'}", "--metrics", "kid,fid", "--samples", "30"]
    assert cli.main(["evaluate", str(run), *words, "--features", "pixels", "--seed", "4"]) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert list(record["scores"]) == ["fid", "kid"]
    assert (record["samples"], record["reference"], record["seed"]) == (30, 20, 4)
    assert (record["extractor"], record["reference_is"]) == ("raw pixels", "a half of it")
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--data", "digits:all", "--metrics", "fid"]) == 0
    assert "on which the model was trained" not in capsys.readouterr().out


def test_evaluate_says_when_the_data_were_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    words = ["train", "dcgan", *TINY, "--steps", "1", "--image_size", "8", "--out", out]
    assert cli.main(words) == 0
    assert cli.main(["evaluate", out, "--metrics", "fid", "--features", "pixels"]) == 0
    text = "real images: digits, its test split, on which the model was trained\n"
    assert text in capsys.readouterr().out
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["seen_in_training"] is True


def test_mistakes_in_evaluating(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "holds no run" in fails(capsys, "evaluate", tmp_path)
    assert "at least 2, got 1" in fails(capsys, "evaluate", run, "--samples", 1)
    assert "at least 0, got -1" in fails(capsys, "evaluate", run, "--seed", -1)
    assert "--terms is for --likelihood" in fails(capsys, "evaluate", run, "--terms", 3)
    both = ["--likelihood", "vlb", "--metrics", "fid"]
    assert "--metrics and --likelihood exclude" in fails(capsys, "evaluate", run, *both)
    assert "did you mean 'fid'" in fails(capsys, "evaluate", run, "--metrics", "fidd")
    assert "did you mean 'pixels'" in fails(capsys, "evaluate", run, "--features", "pixel")
    assert "has points, not images" in fails(capsys, "evaluate", run, "--data", "moons")
    assert "(3, 8, 8), not (1, 8, 8)" in fails(
        capsys, "evaluate", run, "--data", "photos", "--features", "pixels"
    )
    # Before a classifier is trained on them, which takes minutes.
    with monkeypatch.context() as patch:
        patch.setattr("pyfastgan.metrics.extractor_for", None)
        assert "(3, 8, 8), not (1, 8, 8)" in fails(capsys, "evaluate", run, "--data", "photos")
    pixels = ["--features", "pixels", "--metrics", "inception-score"]
    assert "needs a classifier" in fails(capsys, "evaluate", run, *pixels)
    own = pf.gan.train(
        "dcgan", data=torch.zeros(8, 1, 8, 8), out=tmp_path / "own", steps=1, batch_size=8, width=2,
        accelerator="cpu",
    )  # fmt: skip
    assert "the data were the caller's own: name a data set" in fails(capsys, "evaluate", own.path)


def test_arithmetic_draws_a_row_a_term_and_one_of_results(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = digits_classifier(8).predict(pf.gan.load(run).sample(2000, 0)).unique().tolist()
    a, b = classes[0], classes[-1]
    capsys.readouterr()
    assert cli.main(["sample", str(run), "--arithmetic", f"{a}+{a}-{b}", "--seed", "0"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == run / "samples" / f"seed-0-arithmetic-{a}+{a}-{b}.png"
    assert Image.open(path).size == (10 * 34 + 2, 4 * 34 + 2)
    assert "as 7-1+4, got 'x'" in fails(capsys, "sample", run, "--arithmetic", "x")
    assert "samples look like class 10" in fails(capsys, "sample", run, "--arithmetic", f"{a}+10")
