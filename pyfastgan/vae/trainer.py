"""Training the models of this family: presets, `train` and `load`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyfastgan import data as data_sets
from pyfastgan._names import check_choice
from pyfastgan.training import Run, fit, load_weights, resolve_config, run_name
from pyfastgan.training.config import read_config_file
from pyfastgan.vae.autoencoder import Autoencoder
from pyfastgan.vae.autoencoder_system import (
    AutoencoderSystem,
    build_autoencoder,
    build_sparse_coding,
)
from pyfastgan.vae.config import AutoencoderConfig, SparseCodingConfig, VAEConfig, VQConfig
from pyfastgan.vae.datasets import load_images, load_test, training_part
from pyfastgan.vae.model import VAE
from pyfastgan.vae.networks import default_network
from pyfastgan.vae.sparse_coding import SparseCoding
from pyfastgan.vae.system import VAESystem, build
from pyfastgan.vae.vq import VQVAE
from pyfastgan.vae.vq2 import VQVAE2
from pyfastgan.vae.vq_system import VQSystem, build_vq

Config = VAEConfig | VQConfig | AutoencoderConfig | SparseCodingConfig
Model = VAE | VQVAE | VQVAE2 | Autoencoder | SparseCoding
_VAE = VAEConfig(data="digits", steps=4000, batch_size=128)
PRESETS: dict[str, Config] = {
    "vae": _VAE,
    # Of 64 pixels a divergence weighed by the 4 of the paper, which has 4,096, leaves nothing.
    "beta-vae": replace(_VAE, beta=20.0, capacity=10.0, capacity_steps=3000),
    "iwae": replace(_VAE, importance_samples=10),
    # Weights are not averaged: the codebook, which starts codes anew, would lag behind.
    "vq-vae": VQConfig(data="photos", steps=2000, ema_decay=0.0),
    "vq-vae-2": VQConfig(data="photos", levels=2, steps=2000, ema_decay=0.0),
    "autoencoder": AutoencoderConfig(data="digits", steps=2000, batch_size=128),
    "linear-autoencoder": AutoencoderConfig(
        data="digits", network="linear", steps=2000, batch_size=128, learning_rate=3e-3
    ),
    "sparse-coding": SparseCodingConfig(
        data="digits", steps=1000, batch_size=128, learning_rate=3e-3, ema_decay=0.0
    ),
}


def train(
    config: str | Path | Config | Mapping[str, Any] = "vae",
    *,
    data: str | Tensor | Dataset[Any] | None = None,
    out: str | Path,
    resume: bool = False,
    **overrides: Any,
) -> Run:
    """Train a model and write a run folder.

    Of `digits` and `photos` the training split is used, so that the figures in `test.json` are of
    images that the model has not seen.

    Args:
        config: The name of a preset, a configuration, a mapping of the fields of a `VAEConfig`, or a
            YAML or JSON file: a run's own, or fields of a `VAEConfig`.
        data: A name that `pyfastgan.data.load` understands instead of the configuration's, images
            (N, C, size, size) in [-1, 1], or a data set of them.
        out: The folder of the run; it must not hold one yet, unless `resume`.
        resume: Go on from the checkpoint in `out`, with the same bits as without the interruption.
        overrides: Fields that replace those of the configuration.

    Returns:
        The run: `run.samples` is the last picture, `load(run)` the model.

    Raises:
        ValueError: An unknown preset or key (with the nearest one), images of another size than
            `image_size`, and what `pyfastgan.training.fit` refuses.
    """
    name, source = _named(config)
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data_sets.OWN
    kind = type(PRESETS[name])
    resolved = resolve_config(kind, source, **overrides)
    resolved = replace(resolved, data=training_part(resolved.data))
    dataset = load_images(data, resolved.data, resolved.image_size, resolved.channels)
    channels, _, size = dataset.shape
    resolved = replace(resolved, image_size=size, channels=channels)
    test = load_test(resolved.data, size)

    if isinstance(resolved, VAEConfig):
        classes = _classes(resolved, dataset.classes)
        resolved = replace(resolved, classes=classes)
    if isinstance(resolved, VAEConfig | AutoencoderConfig):
        resolved = replace(resolved, network=resolved.network or default_network(dataset.shape))

    def build_system() -> VAESystem | VQSystem | AutoencoderSystem:
        if isinstance(resolved, VQConfig):
            return VQSystem(resolved, dataset, test)
        if isinstance(resolved, VAEConfig):
            return VAESystem(resolved, dataset, test)
        return AutoencoderSystem(resolved, dataset, test)

    return fit(build_system, dataset, resolved, out, name=name, resume=resume)


def _named(config: str | Path | Config | Mapping[str, Any]) -> tuple[str, Any]:
    """The preset that a configuration belongs to, and where its fields are."""
    if isinstance(config, str) and not Path(config).is_file():
        check_choice("preset", config, PRESETS)
        return config, PRESETS[config]
    if isinstance(config, (str, Path)):
        name = read_config_file(config, run_keys=True).get("model")
        return (name if name in PRESETS else "vae"), config
    if isinstance(config, VQConfig):
        return ("vq-vae" if config.levels == 1 else "vq-vae-2"), config
    if isinstance(config, AutoencoderConfig):
        return ("linear-autoencoder" if config.network == "linear" else "autoencoder"), config
    return ("sparse-coding" if isinstance(config, SparseCodingConfig) else "vae"), config


def load(run: Run | str | Path) -> Model:
    """The model of a run, on the CPU in evaluation mode: `load("runs/vae").sample(64, 1)`.

    Raises:
        ValueError: No run there, one of another kind, or weights that cannot be read.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    name = run_name(path)
    check_choice("model", name, PRESETS)
    run = Run.open(path, type(PRESETS[name]))
    model = _build(run.config)  # type: ignore[arg-type]
    load_weights(run.weights, {"model": model.eval()})
    return model


def _build(config: Config) -> Model:
    if isinstance(config, VQConfig):
        return build_vq(config)
    if isinstance(config, AutoencoderConfig):
        return build_autoencoder(config)
    return build_sparse_coding(config) if isinstance(config, SparseCodingConfig) else build(config)


def decode(run: Run | str | Path, codes: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] of the codes of a run's codebook, or of the latent vectors of
    a VAE.

    Args:
        run: The run or its folder.
        codes: int64 (N, h, w); of a model with two levels a pair, the coarser map first; of a VAE
            floating point (N, latent_dim).

    Raises:
        TypeError, ValueError: A run of a model without codes; codes of another dtype or shape, or that
            are none of the codebook.
    """
    model = load(run)
    vectors = isinstance(codes, Tensor) and codes.is_floating_point()
    if isinstance(model, VAE) and model.classes is None and vectors:
        assert isinstance(codes, Tensor)
        if codes.shape[1:] != (model.latent_dim,):
            raise ValueError(
                f"codes must be of shape (N, {model.latent_dim}), got {tuple(codes.shape)}"
            )
        with torch.no_grad():
            return model.decode(codes)
    if not isinstance(model, VQVAE | VQVAE2):
        raise ValueError(f"run must be one of a model with codes, {run} is none")
    return model.decode(codes)  # type: ignore[arg-type]


def _classes(config: VAEConfig, found: int | None) -> int | None:
    if not config.conditional:
        return None
    if found is None or (config.classes is not None and found > config.classes):
        raise ValueError(
            f"a conditional model needs labels of {config.classes or 'its'} classes, the data have"
            f" {found or 'none'}"
        )
    return config.classes or found
