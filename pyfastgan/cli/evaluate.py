"""The command `pyfastgan evaluate`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pyfastgan.cli.parser import Parser
from pyfastgan.cli.runs import load, own_command, run_data


def evaluate(words: list[str]) -> int:
    if words[:1] == ["modes"]:
        return _evaluate_modes(words[1:])
    from pyfastgan import metrics

    names = ", ".join(metrics.METRICS)
    parser = Parser(
        prog="pyfastgan evaluate",
        description="Compare the samples of a run with real images."
        " `pyfastgan evaluate modes --help` tells about modes.",
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data", help="data set to compare with (default: that of the run)")
    parser.add_argument("--metrics", help=f"some of {names} (default: all that are possible)")
    parser.add_argument(
        "--samples", type=int, help="how many (default: as many as real images, at most 10000)"
    )
    parser.add_argument(
        "--features", default="auto", help=f"{', '.join(metrics.FEATURES)} (default auto)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the samples (default 1)")
    parser.add_argument(
        "--likelihood",
        metavar="METHODS",
        help="of a diffusion model, instead of metrics: vlb, ode or vlb,ode of --samples test images",
    )
    parser.add_argument(
        "--terms", type=int, help="of vlb: so many levels an image, not all of them"
    )
    args = parser.parse_args(words)
    if args.samples is not None and args.samples < 2:
        raise ValueError(f"--samples must be at least 2, got {args.samples}")
    if args.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {args.seed}")
    if args.terms is not None and args.likelihood is None:
        raise ValueError("--terms is for --likelihood vlb")
    for name in ("data", "metrics"):
        if args.likelihood is not None and getattr(args, name) is not None:
            raise ValueError(f"--{name} and --likelihood exclude each other")
    chosen = None if args.metrics is None else args.metrics.split(",")
    if args.likelihood is not None:
        own = own_command(words)
        if not hasattr(own, "likelihood"):
            raise ValueError(f"{args.run}: only diffusion models are measured by --likelihood")
        print(own.likelihood(args.run, args.likelihood.split(","), args.samples, args.terms))
        print(args.run / "likelihood.json")
        return 0

    import torch

    from pyfastgan.training.files import write_text

    _, model = load(args.run)
    trained_on = run_data(args.run)
    data = args.data or trained_on
    with torch.no_grad():
        first = model.sample(1, args.seed)
        size = first.shape[-1]
        _, reference, what = metrics.halves(data, size)
        metrics.check_shapes(first, reference)  # sampling and features may take minutes
        count = args.samples or min(len(reference), 10_000)
        samples = model.sample(count, args.seed)
    extractor = metrics.extractor_for(data, size, args.features)
    result = metrics.evaluate(samples, reference, extractor, metrics=chosen)
    seen = metrics.seen_in_training(data, trained_on)
    print(result)
    print(f"real images: {data}, {what}" + (", on which the model was trained" if seen else ""))
    record = {
        "data": data,
        "reference_is": what,
        "seen_in_training": seen,
        "seed": args.seed,
        **dataclasses.asdict(result),
    }
    path = args.run / "evaluation.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(path)
    return 0


def _evaluate_modes(words: list[str]) -> int:
    from pyfastgan.gan import mode_command

    parser = Parser(
        prog="pyfastgan evaluate modes",
        description="Count the modes that runs reach: of the runs given, or of systems that are"
        " trained for it.",
    )
    mode_command.add_arguments(parser)
    mode_command.evaluate_modes(parser.parse_args(words))
    return 0
