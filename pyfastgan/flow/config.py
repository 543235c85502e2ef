"""How to train a flow, and its presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.data import TOYS
from pyfastgan.flow.images import DEQUANTIZATIONS
from pyfastgan.training import TrainConfig
from pyfastgan.training.config import check_number

FLOWS = ("realnvp", "glow", "nsf", "maf")


@dataclass(kw_only=True)
class FlowConfig(TrainConfig):
    """How to train a flow on points in the plane or on images.

    Args:
        flow: realnvp, glow (images), nsf, or maf (points).
        layers: Couplings or autoregressive layers on points; steps a scale on images (RealNVP's are fixed).
        width: Of the networks' hidden layers.
        blocks: Residual blocks of a network on points.
        bins: Of a spline.
        tail_bound: Beyond which splines are the identity.
        autoregressive: Whether each feature follows from those before it, instead of couplings (nsf on points).
        affine: Affine couplings before the splines, for data with long tails (nsf on points).
        scales: Halvings of images; by default as many as lead to 4 pixels.
        levels: Values of a pixel; by default 17 for digits of 8 pixels, else 256.
        dequantization: uniform, or variational: noise from a flow that sees the image.
        recompute: Keep one activation a row of Glow steps, for 1.4 times the time of a step.
        conditional: Whether the networks are given the class of the image.
        image_size: Pixels a side; by default as the data have.
        channels: Of the images; by default as the data have.
        classes: Of a conditional model; by default as the data have.
        temperature: Of samples, those of the loaded model too.
        learning_rate: Of Adam.
        warmup_steps: In which the learning rate rises evenly from 0.
        decay_steps: In which it then falls to 0 along half a cosine, counted from the start; 0 never.
        clip_norm: What the norm of the gradient is cut to; 0 does not.
    """

    flow: str = "nsf"
    layers: int = 8
    width: int = 64
    blocks: int = 2
    bins: int = 8
    tail_bound: float = 3.0
    autoregressive: bool = False
    affine: int = 0
    scales: int | None = None
    levels: int | None = None
    dequantization: str = "uniform"
    recompute: bool = False
    conditional: bool = False
    image_size: int | None = None
    channels: int | None = None
    classes: int | None = None
    temperature: float = 1.0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 0
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("flow", self.flow, FLOWS)
        check_choice("dequantization", self.dequantization, DEQUANTIZATIONS)
        for name in ("layers", "width", "bins"):
            check_number(name, getattr(self, name), int, at_least=1)
        for name in ("blocks", "affine", "warmup_steps", "decay_steps"):
            check_number(name, getattr(self, name), int, at_least=0)
        for name, least in (
            ("scales", 1), ("levels", 2), ("image_size", 1), ("channels", 1), ("classes", 1),
        ):  # fmt: skip
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=least)
        for name in ("temperature", "learning_rate", "clip_norm"):
            check_number(name, getattr(self, name), float, at_least=0)
        if not self.tail_bound > 0:
            raise ValueError(f"tail_bound must be positive, got {self.tail_bound}")


_POINTS = FlowConfig(
    data="moons",
    steps=5000,
    batch_size=512,
    decay_steps=5000,
    ema_decay=0.995,
    sample_count=2000,
    sample_every=2500,
    checkpoint_every=2500,
)
_IMAGES = FlowConfig(
    data="photos",
    steps=1200,
    batch_size=32,
    layers=8,
    ema_decay=0.99,
    temperature=0.7,
    sample_every=400,
    checkpoint_every=400,
)
PRESETS: dict[str, FlowConfig] = {
    "realnvp": replace(_POINTS, flow="realnvp"),
    "glow": replace(_IMAGES, flow="glow"),
    "nsf": replace(_POINTS, flow="nsf", layers=4, bins=16, tail_bound=4.0, affine=2),
    "maf": replace(_POINTS, flow="maf", layers=6),
}
_IMAGE_PRESETS: dict[str, FlowConfig] = {
    "realnvp": replace(_IMAGES, flow="realnvp"),
    "nsf": replace(_IMAGES, flow="nsf", layers=4),
}


def preset(name: str, data: Any = None) -> FlowConfig:
    """The preset of that name for data of a kind: images, or points in the plane.

    Args:
        name: A name of `PRESETS`.
        data: What `pyfastgan.data.load` understands; None for the preset's own.

    Raises:
        ValueError: An unknown preset, with the nearest one.
    """
    check_choice("preset", name, PRESETS)
    if data is None:
        return PRESETS[name]
    if isinstance(data, str):
        points = data in TOYS
    elif isinstance(data, Tensor):
        points = data.ndim == 2
    else:
        points = len(getattr(data, "shape", ())) == 1
    found = PRESETS[name] if points else _IMAGE_PRESETS.get(name, PRESETS[name])
    return dataclasses.replace(found, data=data) if isinstance(data, str) else found
