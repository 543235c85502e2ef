"""How to train a diffusion or flow-matching model, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.data import TOYS
from pyfastgan.diffusion.choices import SAMPLERS
from pyfastgan.diffusion.model import COUPLINGS
from pyfastgan.diffusion.process import OBJECTIVES, SCHEDULES, WEIGHTINGS
from pyfastgan.training import TrainConfig
from pyfastgan.training.config import check_number

NETWORKS = ("unet", "mlp")
_PREDICTIONS = ("eps", "x0", "v")
# Fields that mean nothing to another objective.
_OF_DIFFUSION = (
    *("prediction", "schedule", "levels", "zero_terminal_snr", "weighting", "min_snr_gamma"),
    "learned_variance",
)


@dataclass(kw_only=True)
class DiffusionConfig(TrainConfig):
    """How to train a diffusion or flow-matching model.

    Args:
        objective: diffusion (a DDPM's levels), edm (Karras et al. 2022) or flow (flow matching).
        prediction: What the network of a diffusion predicts: eps, x0 or v.
        schedule: Of a diffusion: linear, cosine, scaled_linear or sigmoid.
        levels: Of a diffusion.
        zero_terminal_snr: Whether its last level is noise alone; needs x0 or v.
        weighting: Of a diffusion's squared errors: none, or min-snr (Hang et al. 2023).
        min_snr_gamma: Of that.
        learned_variance: Whether the network of a diffusion says the variance too, by the hybrid loss
            (Nichol & Dhariwal 2021).
        coupling: Of flow matching: independent, or optimal (OT-CFM, Tong et al. 2024).
        self_conditioning: Whether the network takes its last estimate of x_0 (Chen et al. 2023).
        conditional: Whether it is given the class.
        label_dropout: Share of the labels that is hidden in training, for guidance.
        classes: Of a conditional model; by default as the data have.
        network: unet or mlp; by default what suits the data.
        width: Channels of the U-Net's first level, a multiple of 4, or of an mlp's layers; by default
            32 or 256.
        multipliers: Channels of each level of the U-Net over `width`; by default 1, 2 below 16 pixels,
            else 1, 2, 2.
        blocks: Residual blocks a level of the U-Net, or hidden layers of an mlp; by default 1 or 4.
        attention: Maps of at most so many pixels a side attend to themselves.
        dropout: In the U-Net.
        image_size: Pixels a side; by default as the data have.
        channels: Of the images; by default as the data have.
        dim: Numbers in a point or latent vector; by default as the data have.
        pixel_values: Values that a number of an image may have; by default 17 for digits of 8 pixels, else 256.
        codes: The folder of a run whose latent vectors to learn, instead of data; `data` is then that run's.
        ema_snapshots: Steps between two stored pairs of power-function averages, from which any profile is
            made later (Karras et al. 2024); 0 for none.
        sampler: What pictures are drawn with; by default dpmpp-2m, edm or midpoint.
        sampler_steps: Its steps; by default 25, 18 or 20.
        guidance: Of the pictures of a conditional model.
        learning_rate: Of Adam.
    """

    objective: str = "diffusion"
    prediction: str = "eps"
    schedule: str = "linear"
    levels: int = 1000
    zero_terminal_snr: bool = False
    weighting: str = "none"
    min_snr_gamma: float = 5.0
    learned_variance: bool = False
    coupling: str = "independent"
    self_conditioning: bool = False
    conditional: bool = False
    label_dropout: float = 0.1
    classes: int | None = None
    network: str | None = None
    width: int | None = None
    multipliers: tuple[int, ...] | None = None
    blocks: int | None = None
    attention: int = 8
    dropout: float = 0.0
    image_size: int | None = None
    channels: int | None = None
    dim: int | None = None
    pixel_values: int | None = None
    codes: str | None = None
    ema_snapshots: int = 0
    sampler: str | None = None
    sampler_steps: int | None = None
    guidance: float | None = None
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        known: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("objective", OBJECTIVES),
            ("prediction", _PREDICTIONS),
            ("schedule", SCHEDULES),
            ("weighting", WEIGHTINGS),
            ("coupling", COUPLINGS),
        )
        for name, choices in known:
            check_choice(name, getattr(self, name), choices)
        for name, choices in (("network", NETWORKS), ("sampler", SAMPLERS)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        for name, least in (
            *(("levels", 2), ("classes", 1), ("width", 1), ("blocks", 1), ("attention", 0)),
            *(("image_size", 1), ("channels", 1), ("dim", 1), ("pixel_values", 2)),
            *(("ema_snapshots", 0), ("sampler_steps", 1)),
        ):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, at_least=least)
        if self.multipliers is not None:
            self.multipliers = tuple(self.multipliers)
        for name in ("min_snr_gamma", "label_dropout", "dropout", "learning_rate"):
            check_number(name, getattr(self, name), float, at_least=0)
        for name in ("label_dropout", "dropout"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        self._check_objective()

    def _check_objective(self) -> None:
        if self.objective != "diffusion":
            plain = DiffusionConfig.__dataclass_fields__
            for name in _OF_DIFFUSION:
                if getattr(self, name) != plain[name].default:
                    raise ValueError(
                        f"{name} belongs to objective 'diffusion', got {getattr(self, name)!r}"
                        f" with {self.objective!r}"
                    )
        if self.coupling == "optimal" and self.objective != "flow":
            raise ValueError(
                f"coupling 'optimal' belongs to objective 'flow', not {self.objective!r}"
            )
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "prediction must be x0 or v with zero_terminal_snr: noise alone says nothing of data"
            )
        if self.guidance is not None and not self.conditional:
            raise ValueError(
                f"guidance must be None for an unconditional model, got {self.guidance}"
            )


_IMAGES = DiffusionConfig(data="digits", steps=3000, batch_size=64)
_POINTS = DiffusionConfig(
    data="moons", steps=6000, batch_size=256, sample_count=1000, sample_every=2000
)
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "ddpm": {"schedule": "cosine"},
    "edm": {"objective": "edm"},
    "flow-matching": {"objective": "flow"},
    "ot-cfm": {"objective": "flow", "coupling": "optimal"},
}
IMAGE_PRESETS = {name: replace(_IMAGES, **fields) for name, fields in _OBJECTIVES.items()}
POINT_PRESETS = {name: replace(_POINTS, **fields) for name, fields in _OBJECTIVES.items()}
# Points have no bound: where there is hardly any signal x_0 must not be the small difference that eps makes it.
POINT_PRESETS["ddpm"] = replace(POINT_PRESETS["ddpm"], prediction="v")
POINT_PRESETS["ot-cfm"] = replace(POINT_PRESETS["ot-cfm"], data="8gaussians")
PRESETS: dict[str, DiffusionConfig] = {
    "ddpm": IMAGE_PRESETS["ddpm"],
    "edm": IMAGE_PRESETS["edm"],
    "flow-matching": POINT_PRESETS["flow-matching"],
    "ot-cfm": POINT_PRESETS["ot-cfm"],
}


def preset(name: str, data: Any = None) -> DiffusionConfig:
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
    else:
        shape = data.shape[1:] if isinstance(data, Tensor) else getattr(data, "shape", ())
        points = len(shape) == 1
    return (POINT_PRESETS if points else IMAGE_PRESETS)[name]
