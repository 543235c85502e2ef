"""Normalizing flows: RealNVP, Glow, neural spline flows, MAF and IAF, and their trainer."""

from __future__ import annotations

from typing import Any

from pyfastgan.flow.config import PRESETS, FlowConfig, preset
from pyfastgan.flow.images import Glow, ImageNSF, ImageRealNVP
from pyfastgan.flow.layers import Chain, Flatten
from pyfastgan.flow.model import Flow
from pyfastgan.flow.pictures import density_picture, interpolation, temperatures
from pyfastgan.flow.system import FlowSystem
from pyfastgan.flow.trainer import load, train
from pyfastgan.flow.vectors import IAF, MAF, DenseNSF, DenseRealNVP

__all__ = [
    "IAF",
    "MAF",
    "NSF",
    "PRESETS",
    "Chain",
    "DenseNSF",
    "DenseRealNVP",
    "Flatten",
    "Flow",
    "FlowConfig",
    "FlowSystem",
    "Glow",
    "ImageNSF",
    "ImageRealNVP",
    "RealNVP",
    "density_picture",
    "interpolation",
    "load",
    "preset",
    "temperatures",
    "train",
]


def RealNVP(shape: int | tuple[int, int, int], **options: Any) -> Flow:
    """A RealNVP (Dinh et al. 2017) over vectors of `shape` numbers, or over images of shape (C, H, W).

    Args:
        shape: D, or (C, H, W).
        options: Those of `DenseRealNVP`, or of `ImageRealNVP`.
    """
    return (
        DenseRealNVP(shape, **options) if isinstance(shape, int) else ImageRealNVP(shape, **options)
    )


def NSF(shape: int | tuple[int, int, int], **options: Any) -> Flow:
    """A neural spline flow (Durkan et al. 2019) over vectors of `shape` numbers, or over images of shape (C, H, W).

    Args:
        shape: D, or (C, H, W).
        options: Those of `DenseNSF`, or of `ImageNSF`.
    """
    return DenseNSF(shape, **options) if isinstance(shape, int) else ImageNSF(shape, **options)
