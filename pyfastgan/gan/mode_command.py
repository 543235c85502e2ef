"""What `pyfastgan evaluate modes` offers and does."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyfastgan.gan.mode_suite import SYSTEMS, judge_run, run_suite, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs")
    parser.add_argument(
        "--data", help="of ring8, grid25, stacked-digits, stacked-mnist:ROOT (default ring8,grid25)"
    )
    parser.add_argument(
        "--systems",
        default=",".join(SYSTEMS),
        help="objectives, each with penalties, spectral-norm, orthogonal, pac2 behind plus signs"
        " (default: %(default)s)",
    )
    parser.add_argument("--seeds", default="0,1,2,3,4", help="(default %(default)s)")
    parser.add_argument("--steps", type=int, help="of the discriminator in each run")
    parser.add_argument(
        "--samples", type=int, help="of the runs given (default 2500, images 26000)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/modes"), help="(default %(default)s)"
    )


def evaluate_modes(args: argparse.Namespace) -> None:
    """Count the modes of runs, or train and judge systems, and print what was found."""
    if args.samples is not None and args.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {args.samples}")
    if args.runs:
        for run in args.runs:
            print(f"{run}: {judge_run(run, args.data, args.samples)}")
        return
    seeds = args.seeds.split(",")
    if not all(seed.isdigit() for seed in seeds):
        raise ValueError(f"--seeds must be numbers, got {args.seeds!r}")
    rows = run_suite(
        args.systems.split(","),
        (args.data or "ring8,grid25").split(","),
        [int(seed) for seed in seeds],
        args.out,
        **({} if args.steps is None else {"steps": args.steps}),
    )
    print(table(rows))
    print(args.out / "modes.json")
