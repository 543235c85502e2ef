"""What the tests of training share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# For `toy_system` and `game_system`, here and in the processes that tests start.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and lose much where other processes compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
