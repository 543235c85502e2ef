"""The command line: `pyfastgan train | sample | evaluate | info | list | bench`.

Every command imports what it uses when it runs: `info` and `bench` work without the [train] extra.
A user's mistake ends in one line on stderr and exit status 2; with PYFASTGAN_TRACEBACK set, the
traceback is printed before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pyfastgan.training import TrainConfig

FAMILIES = ("gan", "flow", "vae", "diffusion", "autoregressive")
_RUN_OPTIONS = ("config", "out", "resume", "help")


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception, for one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after the program's name; by default those of this process.

    Returns:
        The exit status: 0, 2 for a mistake of the user, 130 after Ctrl-C or SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in COMMANDS:
            status = COMMANDS[words[0]][0](words[1:])
        else:
            status = _top(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        print(f"\npyfastgan: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough (`pyfastgan list | head`); nothing is left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("PYFASTGAN_TRACEBACK"):
            traceback.print_exc()
        print(f"pyfastgan: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _top(words: list[str]) -> int:
    width = max(map(len, COMMANDS))
    listed = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    parser = _Parser(
        prog="pyfastgan",
        usage="pyfastgan COMMAND ...",
        description="Fast training and sampling of generative models.",
        epilog="\n".join(["commands:", *listed, "", "`pyfastgan COMMAND --help` tells more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    if words and not words[0].startswith("-"):
        raise ValueError(_unknown("command", words[0], COMMANDS))
    if parser.parse_args(words).version:
        import pyfastgan

        print(f"pyfastgan {pyfastgan.__version__}")
    else:
        parser.print_help()
    return 0


def _train(words: list[str]) -> int:
    from pyfastgan.training.config import resolve_config, to_dict, to_yaml

    presets = _presets()
    if not words or words[0].startswith("-"):
        return _train_help(words, presets)
    name, words = words[0], words[1:]
    if name not in presets:
        raise ValueError(_unknown("preset", name, presets))
    family, preset = presets[name]
    parser = _train_parser(name, preset)
    _check_options(words, preset)
    first = parser.parse_args(words)
    out = Path(first.out)
    files = [first.config] if first.config is not None else []
    if first.resume:
        _check_name(out, name)
        files.insert(0, out / "config.yaml")

    def choose(base: TrainConfig) -> dict[str, Any]:
        # Later ones win: the preset, the run that is resumed, the file, the command line.
        for file in files:
            base = _with_file(base, file)
        parser.set_defaults(to_dict(base))
        return vars(parser.parse_args(words))

    chosen = choose(preset)
    if hasattr(family, "preset"):  # one that has other presets for other kinds of data
        chosen = choose(family.preset(name, chosen["data"]))
    values = {key: value for key, value in chosen.items() if key not in _RUN_OPTIONS}
    config = resolve_config(type(preset), values)
    if _first_process():
        print(to_yaml({"model": name, "out": str(out), **to_dict(config)}), end="", flush=True)
    decoder = _decoder(getattr(config, "codes", None))
    run = family.train(name, out=out, resume=first.resume, **decoder, **to_dict(config))
    if _first_process():
        files = sorted(path for path in run.path.iterdir() if path.is_file())
        for path in sorted(files, key=lambda path: path == run.samples):
            print(path)
    return 0


def _train_help(words: list[str], presets: dict[str, tuple[ModuleType, TrainConfig]]) -> int:
    parser = _Parser(
        prog="pyfastgan train",
        usage="pyfastgan train PRESET [options]",
        description="Train a model. `pyfastgan train PRESET --help` lists its options.",
        epilog=f"presets: {', '.join(presets)}",
    )
    parser.parse_args(words)
    raise ValueError(f"train needs the name of a preset (known: {', '.join(presets)})")


def _train_parser(name: str, preset: TrainConfig) -> Any:
    """Options of one preset: the fields of its configuration, typed, and those of the run."""
    from jsonargparse import ArgumentParser

    from pyfastgan.training.config import readable, to_dict

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(readable(ex or ValueError(message)))

    parser = Parser(prog=f"pyfastgan train {name}")
    parser.add_argument("--config", help="YAML or JSON file of options; those given here win")
    parser.add_argument("--out", default=f"runs/{name}", help="folder of the run")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the folder"
    )
    parser.add_class_arguments(type(preset))
    parser.set_defaults(to_dict(preset))
    return parser


def _check_options(words: list[str], preset: TrainConfig) -> None:
    """Name the nearest option for one that does not exist (argparse only says that it does not)."""
    known = [*_RUN_OPTIONS, *(field.name for field in dataclasses.fields(preset))]
    for word in words:
        option = word[2:].split("=")[0]
        if word.startswith("--") and option not in known:
            raise ValueError(_unknown("option", f"--{option}", [f"--{key}" for key in known]))


def _check_name(out: Path, name: str) -> None:
    """Refuse to resume a run of another preset before its options are taken over."""
    from pyfastgan.training.run import run_name

    found = run_name(out)
    if found != name:
        raise ValueError(f"cannot resume {out}: it is a run of {found!r}, not of {name!r}")


def _with_file(base: TrainConfig, path: str | Path) -> TrainConfig:
    """The configuration with what a file says; an error names the file."""
    from pyfastgan.training.config import read_config_file, resolve_config, to_dict

    values = {**to_dict(base), **read_config_file(path)}
    try:
        return resolve_config(type(base), values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _sample(words: list[str]) -> int:
    parser = _Parser(prog="pyfastgan sample", description="Draw samples from a trained model.")
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
    own = _own_command(words)
    if own is not None:
        own.sample_arguments(parser)
    args = parser.parse_args(words)
    if args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    if args.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {args.seed}")
    if own is not None:
        print(own.sample(args, **_decoder(_run_value(args.run, "codes"))))
        return 0
    name = f"count-{args.count}" if args.arithmetic is None else f"arithmetic-{args.arithmetic}"
    if args.truncation is not None:
        name += f"-truncation-{args.truncation:g}"
    out = args.out or args.run / "samples" / f"seed-{args.seed}-{name}.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must be a .png file, got {out}")

    import torch

    from pyfastgan.training import image_grid, save_png, save_samples

    family, model = _load(args.run)
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


def _own_command(words: list[str]) -> Any:
    """The module `command` of the family whose run is named, if it has further options."""
    runs = [Path(word) for word in words if (Path(word) / "config.yaml").is_file()]
    if not runs:
        return None
    presets = _presets()
    return getattr(presets[_known_run(runs[0], presets)][0], "command", None)


def _arithmetic(family: ModuleType, model: Any, args: argparse.Namespace) -> Any:
    """The rows of images of an expression over the classes of the run's data."""
    from pyfastgan.metrics import extractor_for

    if not hasattr(family, "arithmetic"):
        raise ValueError(f"{args.run}: {family.__name__} has no latent arithmetic")
    size = model.sample(1, 0).shape[-1]
    classifier = extractor_for(_run_data(args.run), size, "classifier")
    return family.arithmetic(model, classifier.predict, args.arithmetic, seed=args.seed)


def _load(run: Path) -> tuple[ModuleType, Any]:
    """The family of a run, and the model to sample from."""
    presets = _presets()
    family = presets[_known_run(run, presets)][0]
    return family, family.load(run, **_decoder(_run_value(run, "codes")))


def _decoder(codes: Any) -> dict[str, Any]:
    """What a prior over the codes of another run needs besides: the way from them to images.

    Args:
        codes: What a configuration has under that name: the folder of the other run, or something
            else in a family whose runs are no priors.
    """
    if not isinstance(codes, str):
        return {}
    run, presets = Path(codes), _presets()
    family = presets[_known_run(run, presets)][0]
    if not hasattr(family, "decode"):
        raise ValueError(f"{run}: {family.__name__} has no codes to decode")
    return {"decode": lambda values: family.decode(run, values)}


def _known_run(run: Path, presets: dict[str, Any]) -> str:
    """The preset of a run."""
    from pyfastgan.training import run_name

    name = run_name(run)
    if name not in presets:
        raise ValueError(f"{run}: {_unknown('preset', name, presets)}")
    return name


def _run_data(run: Path) -> str:
    """The name of the data that a run was trained on."""
    return str(_run_value(run, "data"))


def _run_value(run: Path, key: str) -> Any:
    """What the configuration of a run has under a key."""
    from pyfastgan.training.config import read_config_file

    return read_config_file(run / "config.yaml").get(key)


def _evaluate(words: list[str]) -> int:
    if words[:1] == ["modes"]:
        return _evaluate_modes(words[1:])
    from pyfastgan import metrics

    names = ", ".join(metrics.METRICS)
    parser = _Parser(
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
    chosen = None if args.metrics is None else args.metrics.split(",")
    if args.likelihood is not None:
        own = _own_command(words)
        if not hasattr(own, "likelihood"):
            raise ValueError(f"{args.run}: only diffusion models are measured by --likelihood")
        print(own.likelihood(args.run, args.likelihood.split(","), args.samples, args.terms))
        print(args.run / "likelihood.json")
        return 0

    import torch

    from pyfastgan.training.files import write_text

    _, model = _load(args.run)
    trained_on = _run_data(args.run)
    data = args.data or trained_on
    with torch.no_grad():
        size = model.sample(1, args.seed).shape[-1]
        _, reference, what = metrics.halves(data, size)
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

    parser = _Parser(
        prog="pyfastgan evaluate modes",
        description="Count the modes that runs reach: of the runs given, or of systems that are"
        " trained for it.",
    )
    mode_command.add_arguments(parser)
    mode_command.evaluate_modes(parser.parse_args(words))
    return 0


def _info(words: list[str]) -> int:
    _Parser(prog="pyfastgan info", description=COMMANDS["info"][1]).parse_args(words)
    import pyfastgan

    print(pyfastgan.info_text())
    return 0


def _list(words: list[str]) -> int:
    _Parser(prog="pyfastgan list", description=COMMANDS["list"][1]).parse_args(words)
    print("presets")
    try:
        for name, (family, preset) in _presets().items():
            print(f"  {name:18}{family.__name__}, on {preset.data}")
        print("data sets")
        from pyfastgan import data

        for name, text in data.descriptions().items():
            print(f"  {name:18}{text}")
    except ModuleNotFoundError as error:
        print(f"  {_one_line(error)}")
    from pyfastgan import ops

    print("ops")
    for name in ops.__all__:
        print(f"  {name}")
    return 0


def _bench(words: list[str]) -> int:
    from pyfastgan import bench

    return bench.main(words) or 0


def _presets() -> dict[str, tuple[ModuleType, TrainConfig]]:
    """The presets of every family, with the module that trains them."""
    found = {}
    for name in FAMILIES:
        family = importlib.import_module(f"pyfastgan.{name}")
        found.update({preset: (family, config) for preset, config in family.PRESETS.items()})
    return found


def _first_process() -> bool:
    """Whether this is the one of several training processes that speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _unknown(kind: str, name: str, known: Any) -> str:
    from pyfastgan._names import nearest

    return f"unknown {kind} {name!r}{nearest(name, known)} (known: {', '.join(known)})"


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("pyfastgan"):
        return f"{error.name} is not installed: pip install 'pyfastgan[train]'"
    return " ".join(str(error).split()) or type(error).__name__


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (_train, "train a model and write a run folder"),
    "sample": (_sample, "draw samples from a run"),
    "evaluate": (_evaluate, "measure the samples of a run against real images"),
    "info": (_info, "say which backend serves each op, and why others do not"),
    "list": (_list, "list presets, data sets and ops"),
    "bench": (_bench, "measure the installed ops"),
}
