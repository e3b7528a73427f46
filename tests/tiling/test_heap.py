"""Freed memory goes back to the system."""

import os
import subprocess
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


# Threads that allocate at the same time, and the heaps that the C library says it has then.
HEAPS = """
import ctypes, threading
from tiling.heap import keep_pages
{keep}
barrier = threading.Barrier(8)
def work():
    barrier.wait()
    for _ in range(1000):
        bytearray(100_000)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""

# A run by the library, in a process that is somebody else's.
SEGMENT = """
from tests.tiling.predictors import Identity
from tests.tiling.runs import image_of, run
from tiling import Grid
run(image_of((64, 64)), Grid.regular((64, 64), tile=32, overlap=0.25, block=64), Identity(2, (32, 32)), ".")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is asked for it")
@pytest.mark.parametrize(
    ("keep", "one"),
    [("keep_pages()", True), ("", False), ("import tiling.heap; tiling.heap.give_back()", False), (SEGMENT, False)],
)
def test_threads_share_a_heap_only_where_the_process_asks_for_it(keep, one, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", HEAPS.format(keep=keep)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.count("<heap nr=") == 1) is one
