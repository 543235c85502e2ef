"""How a mistake in the options is told."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception, for one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
