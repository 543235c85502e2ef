"""What `accelerate` did, and the way back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Replaced:
    """A part whose computation was replaced.

    name   where it is in the model, as in `named_modules`; "" is the model itself
    kind   its class
    op     what serves it
    """

    name: str
    kind: str
    op: str


@dataclass(frozen=True)
class Skipped:
    """A part that was left as it is.

    name, kind   as in `Replaced`
    reason       why
    """

    name: str
    kind: str
    reason: str


@dataclass
class AccelerateReport:
    """What was replaced, what was left alone and why, and `revert()`, which undoes it."""

    replaced: list[Replaced] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    # Each part, the class that it had and the class that it has.
    _swapped: list[tuple[Any, type, type]] = field(default_factory=list, repr=False)

    def revert(self) -> None:
        """Gives every part the class that it had. Parameters and buffers are the same objects throughout. Parts that
        were given yet another class since are left alone; a second call does nothing."""
        for part, before, after in self._swapped:
            if type(part) is after:
                part.__class__ = before
                # What the fast class had looked up.
                for name in [name for name in vars(part) if name.startswith("_fast_")]:
                    del vars(part)[name]
        self._swapped.clear()

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}, skipped {len(self.skipped)}"]
        if not self.replaced and not self.skipped:
            lines[0] += ": nothing in it is of a kind that an op serves"
        replaced = Counter((r.kind, r.op) for r in self.replaced)
        lines += [f"  {n:4d} x {kind}: {op}" for (kind, op), n in replaced.items()]
        skipped = Counter((s.kind, s.reason) for s in self.skipped)
        lines += [f"  {n:4d} x {kind} left alone: {why}" for (kind, why), n in skipped.items()]
        return "\n".join(lines)
