"""The mode suite: r3gan reaches every mode of the ring, and at least 24 of the grid's 25.

On two cores that do nothing else, a run takes about half a minute.
"""

from pathlib import Path

import pytest

from pyfastgan.gan.mode_suite import run_suite, table

SEEDS = range(5)


@pytest.mark.parametrize(("data", "least"), [("ring8", 8), ("grid25", 24)])
def test_r3gan_loses_no_modes(data: str, least: int, tmp_path: Path) -> None:
    rows = run_suite(["r3gan"], [data], SEEDS, tmp_path, accelerator="cpu")
    print(f"\n{table(rows)}")
    assert all(run["modes"] >= least for run in rows[0]["runs"])
