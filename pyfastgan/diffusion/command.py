"""What `pyfastgan sample` and `pyfastgan evaluate` offer beside the usual for runs of this family."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfastgan.diffusion.animation import save_gif
from pyfastgan.diffusion.choices import SAMPLERS
from pyfastgan.diffusion.config import DiffusionConfig
from pyfastgan.diffusion.datasets import DataSet, load_data, load_latents, load_test, some
from pyfastgan.diffusion.model import METHODS, DiffusionModel
from pyfastgan.diffusion.system import animate
from pyfastgan.diffusion.trainer import load
from pyfastgan.training import Run, save_png, save_samples
from pyfastgan.training.files import atomic, write_text

_BATCH = 256
# Numbers in a sample above which a divergence is estimated, not computed.
_EXACT_DIMS = 16


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this family's options of `pyfastgan sample`."""
    add = parser.add_argument
    add("--sampler", help=f"one of {', '.join(SAMPLERS)}")
    add("--steps", type=int, help="of the sampler")
    add("--eta", type=float, help="fresh noise of the sampler ddim, 0 to 1")
    add("--churn", type=float, help="fresh noise of the sampler edm")
    add("--label", type=int, help="the class to draw (default: each in turn)")
    add("--guidance", type=float, help="guidance scale of a conditional model")
    add("--rescale", type=float, default=0.0, help="share of rescaled guidance, 0 to 1")
    add("--ema", type=float, help="width of an average made from the run's stored ones")
    add("--known", type=Path, help="PNG file of an image to inpaint")
    add("--mask", type=Path, help="PNG file, white where --known is known")
    add("--repeats", type=int, default=1, help="times that each step of an inpainting is done")
    add(
        "--seeds",
        metavar="A-B",
        help="a seed for each sample, from A to B: the same sample for a seed in any batch and on"
        " any number of processes; --out is then a folder, or an .npz file",
    )
    add("--batch", type=int, default=_BATCH, help=f"samples made together (default {_BATCH})")


def sample(args: argparse.Namespace, **decoder: Any) -> Path:
    """Draw what the options ask for; the file or folder that was written."""
    if args.arithmetic is not None:
        raise ValueError(f"{args.run}: pyfastgan.diffusion has no latent arithmetic")
    if args.truncation is not None:
        raise ValueError(f"{args.run}: --truncation is for samples of latent vectors of a GAN")
    model = load(args.run, ema=args.ema, **decoder)
    options = {"labels": args.label, "guidance": args.guidance, "rescale": args.rescale}
    options |= {name: getattr(args, name) for name in ("sampler", "steps", "eta", "churn")}
    options = {name: value for name, value in options.items() if value is not None}
    if args.known is not None or args.mask is not None:
        options |= _inpainting(model, args)
    if args.seeds is not None:
        return _by_seeds(model, args, options)
    default = args.run / "samples" / f"seed-{args.seed}-count-{args.count}.png"
    out: Path = args.out or default
    if out.suffix.lower() == ".gif":
        config = Run.open(args.run, DiffusionConfig).config
        assert isinstance(config, DiffusionConfig)
        if "known" in options:
            raise ValueError("--out must be a .png file with --known")
        save_gif(animate(model, config, _points(config), seed=args.seed, **options), out)
        return out
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must be a .png or a .gif file, got {out}")
    found = model.sample(args.count, args.seed, batch_size=args.batch, **options)
    save_samples(found if found.ndim == 4 else found[:, :2], out)
    return out


def _points(config: DiffusionConfig) -> Tensor | None:
    """Some of the data to draw behind points, where they can be loaded by name."""
    if config.dim is None or config.codes is not None:
        return None
    try:
        return some(load_data(None, config.data, None, None), 2000)[0][:, :2]
    except ValueError:
        return None


def _range(text: str) -> Tensor:
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and dash) or int(last) < int(first):
        raise ValueError(f"--seeds must be A-B with A at most B, got {text!r}")
    if int(last) >= 2**63:
        raise ValueError(f"--seeds must be below 2**63, got {text!r}")
    return torch.arange(int(first), int(last) + 1)


def _by_seeds(model: DiffusionModel, args: argparse.Namespace, options: dict[str, Any]) -> Path:
    """A file for each seed, or one of all. Of several processes, as torchrun starts them, each draws its share."""
    seeds = _range(args.seeds)
    rank, ranks = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    out: Path = args.out or args.run / "samples" / f"seeds-{args.seeds}"
    archive = out.suffix.lower() == ".npz"
    if out.suffix and not archive:
        raise ValueError(f"--out must be a folder or an .npz file with --seeds, got {out}")
    if ranks > 1 and (archive or not (model.images or model.decode)):
        raise ValueError("--out must be a folder of images where there are several processes")
    if not archive and not (model.images or model.decode):
        out, archive = out.with_name(out.name + ".npz"), True
    kept = []
    for part in seeds[rank::ranks].split(args.batch):
        found = model.sample(len(part), part, batch_size=args.batch, **options)
        values = _bytes(found) if found.ndim == 4 else found.cpu().numpy()
        if archive:
            kept.append(values)
            continue
        for seed, image in zip(part.tolist(), values):
            save_png(image.repeat(3, 2) if image.shape[2] == 1 else image, out / f"{seed:06d}.png")
    if archive:
        name = "points" if kept[0].ndim == 2 else "images"
        with atomic(out) as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = {"seeds": seeds.numpy(), name: np.concatenate(kept)}
            np.savez(file, **arrays)
    return out


def _bytes(images: Tensor) -> np.ndarray:
    """uint8 (N, H, W, C) of images (N, C, H, W) in [-1, 1]."""
    scaled = images.detach().float().nan_to_num(-1.0).clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.byte().permute(0, 2, 3, 1).cpu().numpy()


def _inpainting(model: DiffusionModel, args: argparse.Namespace) -> dict[str, Any]:
    if args.known is None or args.mask is None:
        raise ValueError("--known and --mask must be given together")
    if not model.images:
        raise ValueError("--known must not be given: the model is not one of images")
    channels, height, width = model.shape
    known = _picture(args.known, "L" if channels == 1 else "RGB").float() / 127.5 - 1
    mask = _picture(args.mask, "L") > 127
    for name, found in (("--known", known), ("--mask", mask)):
        if tuple(found.shape[1:]) != (height, width):
            raise ValueError(
                f"{name} must be of {width} x {height} pixels like the model's images,"
                f" got {found.shape[2]} x {found.shape[1]}"
            )
    return {"known": known[None], "mask": mask[None], "repeats": args.repeats}


def _picture(path: Path, mode: str) -> Tensor:
    from PIL import Image

    with Image.open(path) as file:
        pixels = np.asarray(file.convert(mode)).copy()
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def likelihood(run: Path, methods: list[str], count: int | None, terms: int | None) -> str:
    """Measure likelihoods of data not trained on, write `likelihood.json` and say what was found.

    Args:
        run: The folder of the run.
        methods: Of "vlb" and "ode".
        count: How many samples of the test data; by default 500.
        terms: Of "vlb": so many levels of each image instead of all.

    Raises:
        ValueError: An unknown method, data that are not there, a method that the model does not have.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--likelihood must be some of {', '.join(METHODS)}, got {method!r}")
    model, config = load(run), Run.open(run, DiffusionConfig).config
    assert isinstance(config, DiffusionConfig)
    test = _held_out(config)
    held = test is not None
    dataset = test or load_data(None, config.data, config.image_size, config.channels)
    batch = some(dataset, count or 500)
    data, labels = batch[0], batch[1] if config.conditional else None
    record: dict[str, Any] = {
        "data": config.data,
        "held_out": f"the test split of {config.data}" if held else "training data",
        "images": len(data),
        "seed": 0,
    }
    lines = []
    for method in methods:
        options: dict[str, Any] = {"terms": terms} if method == "vlb" else {}
        if method == "ode" and model.dims > _EXACT_DIMS:
            options = {"divergence": "hutchinson", "tolerance": 1e-4}
        parts = []
        for start in range(0, len(data), _BATCH):
            part = slice(start, start + _BATCH)
            own = None if labels is None else labels[part]
            parts.append(model.nll(data[part], own, method=method, sample_offset=start, **options))
        nll = torch.cat(parts)
        bits = model.bits_per_dim(nll, method)
        error = float(bits.std() / len(bits) ** 0.5) if len(bits) > 1 else float("nan")
        found = {"nats": float(nll.mean()), "bits_per_dim": float(bits.mean()), "error": error}
        record[method] = {**found, **options}
        unit = f"{found['nats']:.4f} nats" if len(model.shape) == 1 else ""
        lines.append(
            f"{method}: {found['bits_per_dim']:.4f} +- {error:.4f} bits/dim {unit}".strip()
        )
    record["bits_per_dim"] = record[methods[-1]]["bits_per_dim"]
    write_text(run / "likelihood.json", json.dumps(record, indent=2) + "\n")
    return "\n".join([*lines, f"{record['images']} samples: {record['held_out']}"])


def _held_out(config: DiffusionConfig) -> DataSet | None:
    if config.codes is not None:
        return load_latents(config.codes)[1]
    return load_test(config.data, config.image_size)
