"""The systems beside `GAN`: which configuration trains which, and all presets of the family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from pyfastgan._names import check_choice
from pyfastgan.gan import (
    conditional,
    cyclegan,
    gmmn,
    pix2pix,
    progressive_system,
    stylegan2,
    veegan,
)
from pyfastgan.gan import config as gan_config
from pyfastgan.gan.conditional import ConditionalConfig, load_conditional, prepare_conditional
from pyfastgan.gan.cyclegan import CycleGAN, CycleGANConfig, load_cyclegan
from pyfastgan.gan.gmmn import GMMNConfig, load_gmmn, prepare_gmmn
from pyfastgan.gan.pix2pix import Pix2Pix, Pix2PixConfig, load_pix2pix
from pyfastgan.gan.progressive_system import (
    ProgressiveConfig,
    load_progressive,
    prepare_progressive,
)
from pyfastgan.gan.stylegan2 import StyleGAN2Config, load_stylegan2, prepare_stylegan2
from pyfastgan.gan.translation import translation_data
from pyfastgan.gan.veegan import VEEGANConfig, load_veegan, prepare_veegan
from pyfastgan.training import Run, System, TrainConfig

# A configuration with what the data decide, the data, and what builds the system.
Prepared = tuple[TrainConfig, Dataset[Any], Callable[[], System]]


@dataclass(frozen=True)
class Kind:
    """How a configuration is trained.

    Args:
        name: The model's name in a run whose configuration was not chosen by the name of a preset.
        prepare: From a configuration and the caller's own data, or None.
        load: The model of a run.
    """

    name: str
    prepare: Callable[[Any, Any], Prepared]
    load: Callable[[Run], nn.Module]


def _pix2pix(config: Pix2PixConfig, own: Any) -> Prepared:
    config, train, test = translation_data(config, own, paired=True)
    return config, train, lambda: Pix2Pix(config, test or train)


def _cyclegan(config: CycleGANConfig, own: Any) -> Prepared:
    config, train, test = translation_data(config, own, paired=False)
    return config, train, lambda: CycleGAN(config, test or train)


KINDS: dict[type[TrainConfig], Kind] = {
    ConditionalConfig: Kind("cgan", prepare_conditional, load_conditional),
    Pix2PixConfig: Kind("pix2pix", _pix2pix, load_pix2pix),
    CycleGANConfig: Kind("cyclegan", _cyclegan, load_cyclegan),
    GMMNConfig: Kind("gmmn", prepare_gmmn, load_gmmn),
    StyleGAN2Config: Kind("stylegan2", prepare_stylegan2, load_stylegan2),
    VEEGANConfig: Kind("veegan", prepare_veegan, load_veegan),
    ProgressiveConfig: Kind("progan", prepare_progressive, load_progressive),
}

PRESETS: dict[str, Any] = {
    **gan_config.PRESETS,
    **conditional.PRESETS,
    **pix2pix.PRESETS,
    **cyclegan.PRESETS,
    **gmmn.PRESETS,
    **veegan.PRESETS,
    **stylegan2.PRESETS,
    **progressive_system.PRESETS,
}
_POINT_PRESETS: dict[str, Any] = {**gmmn.POINT_PRESETS, **veegan.POINT_PRESETS}


def preset(name: str, data: Any = None) -> Any:
    """The preset of that name for data of a kind: images, or points in the plane.

    Args:
        name: A name of `PRESETS`.
        data: What `pyfastgan.data.load` understands; None for the preset's own.

    Raises:
        ValueError: An unknown preset, with the nearest one.
    """
    check_choice("preset", name, PRESETS)
    if name in gan_config.PRESETS:
        return gan_config.preset(name, data)
    points = name in _POINT_PRESETS and gan_config.are_points(data)
    return _POINT_PRESETS[name] if points else PRESETS[name]
