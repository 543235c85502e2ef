"""Everybody's first call, and the limit of what `torch.compile` may take for its own."""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyfastgan.bench import machine
from pyfastgan.bench.turns import Call, time_of


def first_calls(
    contestants: dict[str, Call], compiling: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of the first call of each, and why `torch.compile` failed if it did."""
    seconds, errors = {}, {}
    for name, call in contestants.items():
        if name != "compile":
            seconds[name] = time_of(call)
            continue
        late: list[bool] = []
        try:
            with warnings.catch_warnings(), _at_most(compiling, late):
                warnings.simplefilter("ignore")
                seconds[name] = time_of(call)
        except Exception as error:
            text = re.split(r"\n|\. ", str(error).strip())[0]
            errors[name] = f"{type(error).__name__}: {text}"
            if late:  # whatever became of the exception on its way
                errors[name] = f"not compiled within {compiling:.0f} s"
                _wait_for_compilers()
    return seconds, errors


class _OutOfTime(RuntimeError):
    """Compiling lasted too long."""


@contextmanager
def _at_most(seconds: float, late: list[bool]) -> Iterator[None]:
    """Raises `_OutOfTime` within after these seconds, where a process can be interrupted; `late` then says so."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(*_: object) -> None:
        late.append(True)
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _wait_for_compilers() -> None:
    """What an interrupted compilation had started goes on for some seconds, and is noise."""
    for _ in range(10):
        if (machine.busy_share() or 0) <= machine.BUSY_LIMIT:
            break


def compiled_sum() -> Call:
    x = torch.randn(256)
    return torch.compile(lambda: x + x.exp())
