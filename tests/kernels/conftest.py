"""What the tests of the kernels share."""

import sys
from pathlib import Path

import pytest

# For `drawn`.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def known_answers():
    """Random123's vectors for philox4x32-10: counter, key, words."""
    return (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    )
