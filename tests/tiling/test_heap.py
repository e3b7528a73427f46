"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tiling.heap import give_back


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is asked for it")
def test_freed_arrays_leave_the_process():
    give_back()
    before = _resident()
    # Small enough for the heap, and every other one kept: what is freed lies between.
    arrays = [np.ones(100_000) for _ in range(200)]
    held = _resident()
    kept = arrays[::2]
    del arrays
    give_back()
    assert held - before > 100 * 2**20
    assert held - _resident() > 50 * 2**20
    assert all(a[0] == 1 for a in kept)
