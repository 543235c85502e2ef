"""The mode suite: systems trained on data of known modes, and how many of them each reaches.

A system is an objective with what regularises it, written together: `kl`, `kl+r1`,
`non-saturating+spectral-norm`, `minimax+pac2`. All have the networks, the batches and the optimizer of
`GANConfig` rows that this module holds, so that they differ in nothing else.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyfastgan import data as data_sets
from pyfastgan.data import TOYS
from pyfastgan.gan.config import MODES, STACKED, GANConfig
from pyfastgan.gan.objectives import OBJECTIVES, get_objective
from pyfastgan.gan.penalties import PENALTIES
from pyfastgan.gan.trainer import load, train
from pyfastgan.metrics.classifier import ImageClassifier
from pyfastgan.metrics.modes import ModeCount, count_modes, count_stacked_modes, mean_interval
from pyfastgan.training import Run, image_grid, save_png
from pyfastgan.training.files import write_text
from pyfastgan.training.grids import figure_pixels, new_figure

if TYPE_CHECKING:
    from torch import Tensor

DATA = ("ring8", "grid25", "stacked-digits")
# What is trained unless systems are named: every objective as it is, and what a regulariser and
# packing change of three of them.
SYSTEMS = (
    "r3gan",
    *OBJECTIVES,
    "wgan+wgan-gp",
    "relativistic+r1",
    "non-saturating+r1",
    "non-saturating+r1r2",
    "non-saturating+dragan",
    "non-saturating+spectral-norm",
    "non-saturating+orthogonal",
    "non-saturating+pac2",
    "non-saturating+pac4",
)
POINT_SAMPLES, STACKED_SAMPLES = 2500, 26_000
_SAMPLE_SEED = 10**6  # apart from the seeds of training


def system_config(system: str, data: str = "ring8") -> GANConfig:
    """The configuration of a system on a data set.

    Args:
        system: An objective, then any of a penalty, `spectral-norm`, `orthogonal` and `pac2`, `pac3`...
            behind plus signs; `r3gan` stands for relativistic+r1r2.
        data: A toy with modes, "stacked-digits" or "stacked-mnist:ROOT".

    Raises:
        ValueError: An unknown part, or one that is there twice; data without modes.
    """
    base = _base(data)
    name, *parts = system.replace("r3gan", "relativistic+r1r2").split("+")
    get_objective(name)
    changes: dict[str, Any] = {"objective": name}
    if name == "wgan" and not parts:
        changes["clip"] = 0.01  # Arjovsky et al. 2017, algorithm 1
    for part in parts:
        more = _part(part, base)
        if more.keys() & changes.keys():
            raise ValueError(f"{system!r} has two parts of a kind: {part!r} is one of them")
        changes |= more
    single = changes.keys() & {"penalty", "spectral_norm"} or "clip" in changes
    if base.architecture == "dcgan" and single:
        changes["discriminator_norm"] = False  # a penalty is one of each sample by itself
    return replace(base, **changes)


def _base(data: str) -> GANConfig:
    if data in TOYS and TOYS[data].modes is not None:
        return GANConfig(**{**MODES, "data": data})
    if data.partition(":")[0] in ("stacked-digits", "stacked-mnist"):
        return GANConfig(**{**STACKED, "data": data})
    known = [name for name, toy in TOYS.items() if toy.modes is not None]
    raise ValueError(
        f"data must have modes ({', '.join([*known, 'stacked-digits', 'stacked-mnist:ROOT'])}),"
        f" got {data!r}"
    )


def _part(part: str, base: GANConfig) -> dict[str, Any]:
    if part in PENALTIES:
        weights = {"wgan-gp": 0.1, "wgan-gp-one-sided": 0.1} if base.architecture == "mlp" else {}
        return {"penalty": part, "penalty_weight": weights.get(part, base.penalty_weight)}
    if part == "spectral-norm":
        return {"spectral_norm": True}
    if part == "orthogonal":
        return {"orthogonal_weight": 1e-4}
    if part.startswith("pac") and part[3:].isdigit():
        return {"pack": int(part[3:])}
    known = ", ".join([*PENALTIES, "spectral-norm", "orthogonal", "pac2"])
    raise ValueError(f"a system's parts are an objective and any of {known}, got {part!r}")


class Judge:
    """Counts the modes of a data set's samples.

    Args:
        data: As in `system_config`.
        size: Pixels a side of stacked images.
        folder: Where the classifier of stacked digits is kept; without one it is trained each time.
    """

    def __init__(self, data: str, size: int | None = None, folder: Path | None = None) -> None:
        self.data, self.classifier = data, None
        if data in TOYS:
            return
        single, held_out = (_single_digits(data, size, split) for split in ("train", "test"))
        file = None if folder is None else folder / f"classifier-{size}.safetensors"
        found = file if file is not None and file.is_file() else None
        self.classifier = ImageClassifier(single, data.removeprefix("stacked-"), found)
        if file is not None and found is None:
            self.classifier.save(file)
        self.accuracy = self.classifier.accuracy(held_out)
        labels = (single.tensors or single.stored)[1]
        self.frequencies = torch.bincount(labels, minlength=10)

    def __call__(self, samples: Tensor) -> ModeCount:
        if self.classifier is None:
            return count_modes(samples, self.data)
        return count_stacked_modes(samples, self.classifier, self.frequencies)


def _single_digits(data: str, size: int | None, split: str) -> Any:
    name = data.removeprefix("stacked-")
    # "stacked-digits:train" judges by all digits, too.
    name = "digits" if name.startswith("digits") else name
    return data_sets.load(name, size=size, split=split)


def judge_run(
    run: Run | str | Path, data: str | None = None, samples: int | None = None
) -> ModeCount:
    """Count the modes that the samples of a GAN's run reach, and write `modes.json` beside them.

    Args:
        run: A run of a GAN.
        data: Whose modes; by default those of the data that it was trained on.
        samples: How many; by default 2,500 points, or 26,000 stacked images.

    Raises:
        ValueError: No such run, or data without modes.
    """
    run = Run.open(run.path if isinstance(run, Run) else run, GANConfig)
    assert isinstance(run.config, GANConfig)
    data = data or run.config.data
    _base(data)
    judge = Judge(data, run.config.image_size, run.path)
    return _judged(run, judge, samples)


def _judged(run: Run, judge: Judge, samples: int | None) -> ModeCount:
    count = samples or (POINT_SAMPLES if judge.data in TOYS else STACKED_SAMPLES)
    found = judge(load(run).sample(count, _SAMPLE_SEED))  # type: ignore[operator]
    _write(run.path, asdict(found), judge)
    return found


def _write(folder: Path, found: dict[str, Any], judge: Judge) -> None:
    if judge.classifier is not None:
        found["classifier_accuracy"] = judge.accuracy
    write_text(folder / "modes.json", json.dumps(found, indent=1) + "\n")


def _folder(out: Path, data: str) -> Path:
    return out / data.replace(":", "-").replace("/", "-")


def run_suite(
    systems: Sequence[str],
    data: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    *,
    say: Callable[[str], object] = print,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Train every system on every data set with every seed, and judge each run.

    What `out` already holds is not trained again, so that a suite can be run in pieces.

    Args:
        systems, data: As in `system_config`.
        seeds: Of the runs.
        out: The folder; a run lies in DATA/SYSTEM/seed-K, with its pictures.
        say: Gets a line after each run.
        overrides: Fields of the configuration for all runs, as `steps`.

    Returns:
        A row for each data set and system: the runs, and the means of their figures with 95 %
        intervals; also written to `modes.json` in `out`, with a picture DATA.png.

    Raises:
        ValueError: An unknown system, data without modes, or an `out` with runs of other settings.
    """
    configs = {(d, s): system_config(s, d) for d in data for s in systems}
    out, rows = Path(out), []
    for d in data:
        judge = None
        for system in systems:
            config = replace(configs[d, system], **overrides)
            runs = []
            for seed in seeds:
                folder, seeded = (
                    _folder(out, d) / system / f"seed-{seed}",
                    replace(config, seed=seed),
                )
                if (folder / "modes.json").is_file():
                    _check_same(seeded, folder)
                else:
                    judge = judge or Judge(d, config.image_size, out)
                    _train_and_judge(seeded, folder, judge)
                runs.append({"seed": seed, **json.loads((folder / "modes.json").read_text())})
                say(f"{d:16}{system:32}seed {seed}  {_line(runs[-1])}")
            rows.append({"data": d, "system": system, "steps": config.steps, **_means(runs)})
        _draw([row for row in rows if row["data"] == d], _folder(out, d))
    write_text(out / "modes.json", json.dumps(rows, indent=1) + "\n")
    return rows


def _check_same(config: GANConfig, folder: Path) -> None:
    if Run.open(folder, GANConfig).config != config:
        raise ValueError(f"{folder} holds a run of other settings: choose another folder")


def _train_and_judge(config: GANConfig, folder: Path, judge: Judge) -> None:
    start = time.perf_counter()
    resume = (folder / "checkpoints" / "last.ckpt").is_file()
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    found: dict[str, Any]
    try:
        found = asdict(_judged(train(config, out=folder, resume=resume), judge, None))
    except ValueError as error:
        # A run that leaves the finite numbers is a result, too.
        if "broken down" not in str(error):
            raise
        points = judge.data in TOYS
        of = len(TOYS[judge.data].modes) if points else 1000  # type: ignore[arg-type]
        found = {"modes": 0, "of": of, "high_quality": 0.0 if points else None, "kl": None}
        found |= {"samples": 0, "diverged": str(error)}
    found["seconds"] = round(time.perf_counter() - start, 1)
    _write(folder, found, judge)


def _line(run: dict[str, Any]) -> str:
    if "diverged" in run:
        return run["diverged"]
    keys = ("modes", "of", "high_quality", "kl", "samples")
    return f"{ModeCount(**{key: run[key] for key in keys})} in {run['seconds']:.0f} s"


def _means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"of": runs[0]["of"], "runs": runs}
    for key in ("modes", "high_quality", "kl"):
        values = [run[key] for run in runs if run[key] is not None and math.isfinite(run[key])]
        found[key] = mean_interval(values) if values else None
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `run_suite` as lines of text."""
    lines = [f"{'data':16}{'system':32}{'modes':>18}{'high quality':>18}{'KL':>18}  seeds"]
    for row in rows:
        cells = [
            _cell(row[key], digits)
            for key, digits in (("modes", 1), ("high_quality", 3), ("kl", 3))
        ]
        lines.append(
            f"{row['data']:16}{row['system']:32}"
            + "".join(f"{c:>18}" for c in cells)
            + f"  {len(row['runs'])}"
        )
    return "\n".join(lines)


def _cell(mean: tuple[float, float] | None, digits: int) -> str:
    return "-" if mean is None else f"{mean[0]:.{digits}f} +- {mean[1]:.{digits}f}"


def _draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """A panel for each system, of the first of its runs."""
    columns = min(6, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = new_figure(1.7 * columns, 1.95 * lines)
    for place, row in enumerate(rows):
        axes = figure.add_subplot(lines, columns, place + 1)
        axes.set_xticks([])
        axes.set_yticks([])
        first = row["runs"][0]
        axes.set_title(f"{row['system']}\n{first['modes']} of {first['of']}", fontsize=6)
        if "diverged" in first:
            continue
        model: Any = load(folder / row["system"] / f"seed-{first['seed']}")
        toy = TOYS.get(row["data"])
        samples = model.sample(1000 if toy else 36, _SAMPLE_SEED)
        if toy is None:
            axes.imshow(image_grid(samples))
            continue
        assert toy.modes is not None
        x, y = toy.modes.T.numpy()
        axes.scatter(x, y, s=25, facecolors="none", edgecolors="0.6", linewidths=0.5)
        x, y = samples.T.numpy()
        axes.scatter(x, y, s=1, c="tab:blue", linewidths=0)
        reach = 1.25 * float(toy.modes.abs().max())
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.93, wspace=0.08, hspace=0.3)
    save_png(figure_pixels(figure), folder.with_name(f"{folder.name}.png"))
