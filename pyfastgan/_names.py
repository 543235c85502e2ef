"""Names that are not known: the error says what there is, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or an empty string where nothing is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(argument: str, name: object, known: Iterable[str]) -> None:
    """Raises ValueError, with the list and the nearest name, unless `name` is one of `known`."""
    known = list(known)
    if name not in known:
        raise ValueError(
            f"{argument} must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
        )
