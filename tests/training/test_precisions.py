"""Every kind of system trains, samples and loads in every precision that it does not refuse."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

FEW = {"batch_size": 4, "steps": 1, "sample_count": 2, "sample_every": 0, "accelerator": "cpu"}
SMALL = {"image_size": 16, "width": 4}
# One of each system, as small as it can be.
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "dcgan": ("gan", SMALL),
    "r3gan": ("gan", {"data": "ring8", "width": 8}),
    "cgan": ("gan", SMALL),
    "biggan": ("gan", SMALL),
    "pix2pix": ("gan", {"data": "digits2bold", "image_size": 16, "width": 4}),
    "cyclegan": ("gan", {"image_size": 16, "width": 4, "blocks": 1}),
    "gmmn": ("gan", {"width": 8, "autoencoder_steps": 1, "steps": 2}),
    "veegan": ("gan", SMALL),
    "stylegan2": ("gan", {**SMALL, "path_interval": 1}),
    "progan": ("gan", {**SMALL, "phase_steps": 1}),
    "realnvp": ("flow", {"width": 8, "layers": 2}),
    "maf": ("flow", {"width": 8, "layers": 2}),
    "vae": ("vae", {"width": 8}),
    "vq-vae": ("vae", {"data": "digits", "image_size": 8, "width": 8}),
    "autoencoder": ("vae", {"width": 8}),
    "sparse-coding": ("vae", {}),
    "flow-matching": ("diffusion", {"width": 8, "blocks": 1}),
    "pixelcnn": ("autoregressive", {"width": 8, "layers": 1}),
}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_trains_and_samples(name: str, precision: str, tmp_path: Path) -> None:
    family, fields = SYSTEMS[name]
    module = importlib.import_module(f"pyfastgan.{family}")
    run = module.train(name, out=tmp_path / "r", **{**FEW, **fields}, precision=precision)
    samples = module.load(run).sample(2, seed=1)
    assert len(samples) == 2
    assert samples.isfinite().all()


def test_flows_of_images_refuse_half_types(tmp_path: Path) -> None:
    from pyfastgan import flow

    with pytest.raises(ValueError, match=r"precision must be 32-true.*for images.*'bf16-true'"):
        flow.train("glow", data="digits", out=tmp_path / "r", precision="bf16-true")
    assert not (tmp_path / "r").exists()


def test_flows_find_the_levels_of_bfloat16_images() -> None:
    from pyfastgan.flow import ImageRealNVP

    levels = torch.arange(256.0).view(1, 1, 16, 16)
    flow = ImageRealNVP((1, 16, 16), width=4, levels=256)
    known = flow._continuous((levels / 127.5 - 1).bfloat16(), 1, 0)[0]
    assert torch.equal((known * 256).floor(), levels)
