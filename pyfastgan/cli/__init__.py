"""The command line: `pyfastgan train | sample | evaluate | info | list | bench`.

Every command imports what it uses when it runs: `info` and `bench` work without the [train] extra.
A user's mistake ends in one line on stderr and exit status 2; with PYFASTGAN_TRACEBACK set, the
traceback is printed before it.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from pyfastgan import BackendError
from pyfastgan.cli import runs
from pyfastgan.cli.evaluate import evaluate
from pyfastgan.cli.parser import Parser
from pyfastgan.cli.sample import sample
from pyfastgan.cli.train import train


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
    except (ValueError, TypeError, OSError, ModuleNotFoundError, BackendError) as error:
        if os.environ.get("PYFASTGAN_TRACEBACK"):
            traceback.print_exc()
        print(f"pyfastgan: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _top(words: list[str]) -> int:
    width = max(map(len, COMMANDS))
    listed = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    parser = Parser(
        prog="pyfastgan",
        usage="pyfastgan COMMAND ...",
        description="Fast training and sampling of generative models.",
        epilog="\n".join(["commands:", *listed, "", "`pyfastgan COMMAND --help` tells more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    if words and not words[0].startswith("-"):
        raise ValueError(runs.unknown("command", words[0], COMMANDS))
    if parser.parse_args(words).version:
        import pyfastgan

        print(f"pyfastgan {pyfastgan.__version__}")
    else:
        parser.print_help()
    return 0


def _info(words: list[str]) -> int:
    Parser(prog="pyfastgan info", description=COMMANDS["info"][1]).parse_args(words)
    import pyfastgan

    print(pyfastgan.info_text())
    return 0


def _list(words: list[str]) -> int:
    Parser(prog="pyfastgan list", description=COMMANDS["list"][1]).parse_args(words)
    print("presets")
    try:
        for name, (family, preset) in runs.all_presets().items():
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


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("pyfastgan"):
        return f"{error.name} is not installed: pip install 'pyfastgan[train]'"
    return " ".join(str(error).split()) or type(error).__name__


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train, "train a model and write a run folder"),
    "sample": (sample, "draw samples from a run"),
    "evaluate": (evaluate, "measure the samples of a run against real images"),
    "info": (_info, "say which backend serves each op, and why others do not"),
    "list": (_list, "list presets, data sets and ops"),
    "bench": (_bench, "measure the installed ops"),
}
