"""Training the models of this family: `train` and `load`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from pyfastgan import data as data_sets
from pyfastgan._names import check_choice
from pyfastgan.flow.config import PRESETS, FlowConfig, preset
from pyfastgan.flow.datasets import load_data, load_test, training_part
from pyfastgan.flow.model import Flow
from pyfastgan.flow.system import FlowSystem, build, default_levels
from pyfastgan.training import Run, fit, load_weights, resolve_config, run_name


def train(
    config: str | Path | FlowConfig | Mapping[str, Any] = "nsf",
    *,
    data: str | Tensor | Dataset[Any] | None = None,
    out: str | Path,
    resume: bool = False,
    **overrides: Any,
) -> Run:
    """Train a flow and write a run folder.

    Of `digits` and `photos` the training split is used, so that the figures in `test.json` are of images that
    the model has not seen; those of a toy are of points from another seed.

    Args:
        config: The name of a preset, a configuration, a mapping of its fields, or a YAML or JSON file.
        data: A name that `pyfastgan.data.load` understands instead of the configuration's, images (N, C, size, size)
            in [-1, 1], points (N, 2), or a data set of them. A preset follows the kind of the data.
        out: The folder of the run; it must not hold one yet, unless `resume`.
        resume: Go on from the checkpoint in `out`, with the same bits as without the interruption.
        overrides: Fields that replace those of the configuration.

    Returns:
        The run: `run.samples` is the last picture, `load(run)` the model.

    Raises:
        ValueError: An unknown preset or key (with the nearest one), data of another shape than the configuration's,
            and what `pyfastgan.training.fit` refuses.
    """
    source: Any = config
    if isinstance(config, str) and not Path(config).is_file():
        source = preset(config, data if data is not None else overrides.get("data"))
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data_sets.OWN
    resolved = resolve_config(FlowConfig, source, **overrides)
    resolved = replace(resolved, data=training_part(resolved.data))
    dataset = load_data(data, resolved)
    if len(dataset.shape) == 3:
        channels, _, size = dataset.shape
        resolved = replace(resolved, image_size=size, channels=channels)
        resolved = replace(resolved, levels=resolved.levels or default_levels(resolved))
        if resolved.precision in ("bf16-true", "16-true"):
            raise ValueError(
                "precision must be 32-true, 64-true, bf16-mixed or 16-mixed for images, since half types"
                f" hold no fractions of their levels; got {resolved.precision!r}"
            )
    elif resolved.image_size is not None:
        raise ValueError(
            f"image_size must be None for points in the plane, got {resolved.image_size}"
        )
    test, test_is = load_test(resolved.data, resolved.image_size)
    resolved = replace(resolved, classes=_classes(resolved, dataset.classes))

    def build_system() -> FlowSystem:
        return FlowSystem(resolved, dataset, test, test_is)

    return fit(build_system, dataset, resolved, out, name=resolved.flow, resume=resume)


def load(run: Run | str | Path) -> Flow:
    """The model of a run, on the CPU in evaluation mode: `load("runs/glow").sample(64, 1, temperature=0.7)`.

    Raises:
        ValueError: No run there, one of another kind, or weights that cannot be read.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    check_choice("model", run_name(path), PRESETS)
    run = Run.open(path, FlowConfig)
    assert isinstance(run.config, FlowConfig)
    model = build(run.config).eval()
    load_weights(run.weights, {"model": model})
    return model


def _classes(config: FlowConfig, found: int | None) -> int | None:
    if not config.conditional:
        return None
    if found is None or (config.classes is not None and found > config.classes):
        raise ValueError(
            f"a conditional model needs labels of {config.classes or 'its'} classes, the data have {found or 'none'}"
        )
    return config.classes or found
