"""The C library's heap: settings for a process that is ours, and returning freed memory to the system."""

import ctypes
import sys
from functools import cache
from typing import Any

# malloc.h: numbers of the settings
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The network's arrays come and go with each tile. Outside the heap, or with a heap that shrinks each time, the system
# clears their pages anew for every tile, which takes a third of the time in 3D. 32 MiB is glibc's largest threshold.
_LARGE = 32 * 2**20
_NEVER = 2**31 - 1
# With a heap for each thread, freed memory of one is of no use to the others: 70 to 100 MiB more.
_HEAPS = 1

# The same settings for a process that is yet to start, such as a worker: there threads begin before any of our code.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": str(_HEAPS),
    "MALLOC_MMAP_THRESHOLD_": str(_LARGE),
    "MALLOC_TRIM_THRESHOLD_": str(_NEVER),
}


def keep_pages() -> None:
    """Let freed arrays wait in one heap for the next tile's. For the command line, before it starts any thread.

    It changes the allocator of the whole process, so that a library must not call it; does nothing without glibc.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_M_ARENA_MAX, _HEAPS)


def give_back() -> None:
    """Return freed memory to the operating system; changes no setting, and does nothing without glibc.

    Blocks differ in size at the image's edges, and leave holes in the heap that add up to a tenth of the process.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """Return the C library, or None where it is not glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
