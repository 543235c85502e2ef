"""Training the models of this family: `train` and `load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from pyfastgan import data as data_sets
from pyfastgan.diffusion.config import DiffusionConfig, preset
from pyfastgan.diffusion.datasets import DataSet, load_data, load_latents, some, training_part
from pyfastgan.diffusion.model import Decode, DiffusionModel
from pyfastgan.diffusion.power_average import reconstruct
from pyfastgan.diffusion.prediction import SIGMA_DATA
from pyfastgan.diffusion.system import DiffusionSystem, build
from pyfastgan.training import Run, fit, load_weights, resolve_config
from pyfastgan.training.checkpoint import load_state
from pyfastgan.training.config import read_config_file

# The model's name in a run whose configuration was not chosen by the name of a preset.
_NAME = "ddpm"
# What digits of 8 pixels have; other images have bytes.
_DIGIT_VALUES, _BYTES = 17, 256
_MEASURED, _PICTURED_POINTS = 10_000, 2000


def train(
    config: str | Path | DiffusionConfig | Mapping[str, Any] = "ddpm",
    *,
    data: str | Tensor | Dataset[Any] | None = None,
    out: str | Path,
    resume: bool = False,
    decode: Decode | None = None,
    **overrides: Any,
) -> Run:
    """Train a diffusion or flow-matching model and write a run folder.

    Of `digits` and `photos` the training split is used, so that likelihoods are of images not seen.

    Args:
        config: The name of a preset, a configuration, a mapping of its fields, or a YAML or JSON file.
            A preset has other networks for points in the plane than for images.
        data: A name that `pyfastgan.data.load` understands instead of the configuration's, images
            (N, C, size, size) in [-1, 1], points (N, dim), or a data set of them.
        out: The folder of the run; it must not hold one yet, unless `resume`.
        resume: Go on from the checkpoint in `out`, with the same bits as without the interruption.
        decode: With `codes`, maps latent vectors (N, dim) to images, for the pictures of samples.
        overrides: Fields that replace those of the configuration.

    Returns:
        The run: `run.samples` is the last picture, `load(run)` the model.

    Raises:
        ValueError: An unknown preset or key (with the nearest one), data of another shape than the
            configuration's, and what `pyfastgan.training.fit` refuses.
    """
    own = None if data is None or isinstance(data, str) else data_sets.load(data)
    name, source = _NAME, config
    if isinstance(config, str) and not Path(config).is_file():
        name, source = config, preset(config, own or data or overrides.get("data"))
    elif isinstance(config, (str, Path)):
        name = read_config_file(config, run_keys=True).get("model", _NAME)
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data_sets.OWN
    resolved = resolve_config(DiffusionConfig, source, **overrides)
    if resolved.codes is not None:
        dataset: DataSet = load_latents(resolved.codes)[0]
        of_codes = read_config_file(Path(resolved.codes) / "config.yaml").get("data")
        resolved = resolve_config(DiffusionConfig, resolved, data=of_codes or resolved.data)
    else:
        resolved = resolve_config(DiffusionConfig, resolved, data=training_part(resolved.data))
        dataset = load_data(own, resolved.data, resolved.image_size, resolved.channels)
    resolved = _with_shape(resolved, dataset)
    shift, scale, points = 0.0, 1.0, None
    if len(dataset.shape) == 1:
        found = some(dataset, _MEASURED)[0]
        shift, scale = float(found.mean()), max(float(found.std()), 1e-6)
        # EDM's own unit.
        scale /= SIGMA_DATA if resolved.objective == "edm" else 1.0
        points = found[:_PICTURED_POINTS, :2]

    def make() -> DiffusionSystem:
        return DiffusionSystem(
            resolved, shift, scale, folder=Path(out), points=points, decode=decode
        )

    return fit(make, dataset, resolved, out, name=name, resume=resume)


def load(
    run: Run | str | Path, *, decode: Decode | None = None, ema: float | None = None
) -> DiffusionModel:
    """The model of a run, on the CPU in evaluation mode: `load("runs/ddpm").sample(64, 1)`.

    Args:
        run: The run or its folder.
        decode: Of a model of latent vectors, maps them to images; without it samples are vectors.
        ema: The width of a power-function average to make from those that the run has stored (see
            `pyfastgan.diffusion.reconstruct`), instead of the run's own average.

    Raises:
        ValueError: No run there, one of another kind, or weights that cannot be read.
    """
    run = Run.open(run.path if isinstance(run, Run) else run, DiffusionConfig)
    assert isinstance(run.config, DiffusionConfig)
    model = build(run.config).eval()
    load_weights(run.weights, {"model": model})
    if ema is not None:
        load_state(model, reconstruct(run.path, ema), f"the stored averages of {run.path}")
    model.decode = decode
    return model


def _with_shape(config: DiffusionConfig, dataset: DataSet) -> DiffusionConfig:
    """The configuration with what the data say."""
    shape = dataset.shape
    wanted = "mlp" if len(shape) == 1 else "unet"
    if config.network not in (None, wanted):
        raise ValueError(
            f"network must be {wanted!r} for data of shape {shape}, got {config.network!r}"
        )
    known: dict[str, Any] = {"network": wanted, "classes": _classes(config, dataset)}
    if wanted == "mlp":
        if config.dim not in (None, shape[0]):
            raise ValueError(f"dim must be {shape[0]} like the data, got {config.dim}")
        known |= {"dim": shape[0], "width": config.width or 256, "blocks": config.blocks or 4}
    else:
        digits = config.data.partition(":")[0] == "digits" and shape[1] == 8
        known |= {
            "image_size": shape[1],
            "channels": shape[0],
            "pixel_values": config.pixel_values or (_DIGIT_VALUES if digits else _BYTES),
            "width": config.width or 32,
            "blocks": config.blocks or 1,
            "multipliers": config.multipliers or ((1, 2) if shape[1] < 16 else (1, 2, 2)),
        }
    return resolve_config(DiffusionConfig, config, **known)


def _classes(config: DiffusionConfig, dataset: DataSet) -> int | None:
    if not config.conditional:
        return config.classes
    if dataset.classes is None:
        raise ValueError("conditional must be false: the data have no labels")
    if config.classes is not None and config.classes < dataset.classes:
        raise ValueError(f"classes must be at least {dataset.classes}, got {config.classes}")
    return config.classes or int(dataset.classes)
