"""Training the models of this family: presets, `train` and `load`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from pyfastgan import data as data_sets
from pyfastgan._names import check_choice
from pyfastgan.training import Run, fit, load_weights, resolve_config
from pyfastgan.vae.config import VAEConfig
from pyfastgan.vae.datasets import load_images, load_test, training_part
from pyfastgan.vae.model import VAE
from pyfastgan.vae.networks import default_network
from pyfastgan.vae.system import VAESystem, build

# The model's name in a run whose configuration was not chosen by the name of a preset.
_NAME = "vae"
_VAE = VAEConfig(data="digits", steps=4000, batch_size=128)
PRESETS: dict[str, VAEConfig] = {
    "vae": _VAE,
    "beta-vae": replace(_VAE, beta=4.0),
    "iwae": replace(_VAE, importance_samples=10),
}


def train(
    config: str | Path | VAEConfig | Mapping[str, Any] = _NAME,
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
        config: The name of a preset, a configuration, a mapping of its fields, or a YAML or JSON file.
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
    name, source = _NAME, config
    if isinstance(config, str) and not Path(config).is_file():
        check_choice("preset", config, PRESETS)
        name, source = config, PRESETS[config]
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data_sets.OWN
    resolved = resolve_config(VAEConfig, source, **overrides)
    resolved = replace(resolved, data=training_part(resolved.data))
    dataset = load_images(data, resolved.data, resolved.image_size, resolved.channels)
    shape = dataset.shape
    resolved = replace(
        resolved,
        image_size=shape[-1],
        channels=shape[0],
        network=resolved.network or default_network(shape),
        classes=_classes(resolved, dataset.classes),
    )
    test = load_test(resolved.data, shape[-1])
    return fit(
        lambda: VAESystem(resolved, dataset, test),
        dataset,
        resolved,
        out,
        name=name,
        resume=resume,
    )


def load(run: Run | str | Path) -> VAE:
    """The model of a run, on the CPU in evaluation mode: `load("runs/vae").sample(64, 1)`.

    Raises:
        ValueError: No run there, one of another kind, or weights that cannot be read.
    """
    run = Run.open(run.path if isinstance(run, Run) else run, VAEConfig)
    assert isinstance(run.config, VAEConfig)
    model = build(run.config).eval()
    load_weights(run.weights, {"model": model})
    return model


def _classes(config: VAEConfig, found: int | None) -> int | None:
    if not config.conditional:
        return None
    if found is None or (config.classes is not None and found > config.classes):
        raise ValueError(
            f"a conditional model needs labels of {config.classes or 'its'} classes, the data have"
            f" {found or 'none'}"
        )
    return config.classes or found
