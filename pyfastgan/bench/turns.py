"""Contestants take turns in one process, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]


_ROUNDS = (5, 200)


# A median and quartiles of fewer turns would say nothing.
_FEWEST = 2


def time_of(call: Call, count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def take_turns(calls: dict[str, Call], seconds: float, turn: float) -> dict[str, list[float]]:
    """Seconds of a call in every turn; each round starts with another contestant.

    Where a few rounds take longer than `seconds`, those that take the most of it sit out some rounds.
    """
    names = list(calls)
    counts, lengths = {}, {}
    for name, call in calls.items():
        once = time_of(call)
        if once < turn:
            once = min(once, time_of(call), time_of(call))
        counts[name] = max(1, math.ceil(turn / once))
        lengths[name] = once * counts[name]
    rounds = min(max(int(seconds / sum(lengths.values())), _ROUNDS[0]), _ROUNDS[1])
    turns = dict.fromkeys(names, rounds)
    if rounds == _ROUNDS[0]:
        share = seconds / len(names)
        turns = {name: min(rounds, max(int(share / lengths[name]), _FEWEST)) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            if (k + 1) * turns[name] // rounds > len(times[name]):
                times[name].append(time_of(calls[name], counts[name]))
    return times


def steady() -> Call:
    a = torch.randn(256, 256)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)
