"""The command `pyfastgan sample`."""

from __future__ import annotations

import argparse
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from pyfastgan.cli.parser import Parser
from pyfastgan.cli.runs import decoding, load, own_command, run_data, run_value


def sample(words: list[str]) -> int:
    parser = Parser(prog="pyfastgan sample", description="Draw samples from a trained model.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--count", type=int, default=64, help="how many (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same samples (default 0)")
    parser.add_argument(
        "--truncation",
        type=float,
        help="largest size of a latent number: less variety, more typical samples (default: any)",
    )
    parser.add_argument(
        "--arithmetic",
        metavar="A-B+C",
        help="instead of samples, latent arithmetic with classes of the data, as 7-1+4:"
        " a row of each term, and one of the result",
    )
    parser.add_argument("--out", type=Path, help="PNG file (default: one in the run's folder)")
    own = own_command(words)
    if own is not None:
        own.sample_arguments(parser)
    args = parser.parse_args(words)
    if args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    if args.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {args.seed}")
    if own is not None:
        print(own.sample(args, **decoding(run_value(args.run, "codes"))))
        return 0
    name = f"count-{args.count}" if args.arithmetic is None else f"arithmetic-{args.arithmetic}"
    if args.truncation is not None:
        name += f"-truncation-{args.truncation:g}"
    out = args.out or args.run / "samples" / f"seed-{args.seed}-{name}.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must be a .png file, got {out}")

    import torch

    from pyfastgan.training import image_grid, save_png, save_samples

    family, model = load(args.run)
    options = {} if args.truncation is None else {"truncation": args.truncation}
    if options and (
        args.arithmetic is not None or "truncation" not in signature(model.sample).parameters
    ):
        raise ValueError(f"{args.run}: --truncation is for samples of latent vectors of a GAN")
    if args.arithmetic is None:
        with torch.no_grad():
            samples = model.sample(args.count, args.seed, **options)
        save_samples(samples, out)
    else:
        rows = _arithmetic(family, model, args)
        save_png(image_grid(rows.flatten(0, 1), columns=rows.shape[1]), out)
    print(out)
    return 0


def _arithmetic(family: ModuleType, model: Any, args: argparse.Namespace) -> Any:
    """The rows of images of an expression over the classes of the run's data."""
    from pyfastgan.metrics import extractor_for

    if not hasattr(family, "arithmetic"):
        raise ValueError(f"{args.run}: {family.__name__} has no latent arithmetic")
    if not hasattr(model, "latents") or "labels" in signature(model.forward).parameters:
        raise ValueError(f"{args.run}: --arithmetic is for a GAN of latent vectors alone")
    size = model.sample(1, 0).shape[-1]
    classifier = extractor_for(run_data(args.run), size, "classifier")
    return family.arithmetic(model, classifier.predict, args.arithmetic, seed=args.seed)
