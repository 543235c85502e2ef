"""Peak memory of one call, ours and others', each row in a process of its own: see `memory.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from memory import ROWS

FILE = Path(__file__).with_name("memory.py")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize("name", ROWS)
def test_memory(bench, capsys, name):
    done = subprocess.run([sys.executable, FILE, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    peaks = json.loads(done.stdout)
    shape = ROWS[name][0]
    bench.results.append({"name": name, "shape": shape, "memory": peaks, "noisy": False})
    with capsys.disabled():
        cells = [f"{who} {peak / 2**20:.1f} MiB" for who, peak in peaks.items()]
        print(f"\nmemory of {name}, {shape}\n    {'; '.join(cells)}", end="")
