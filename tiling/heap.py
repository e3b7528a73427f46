"""Memory of freed arrays, given back to the system."""

import ctypes
import sys
from functools import cache
from typing import Any

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 8 * 2**20


def give_back() -> None:
    """Returns what freed arrays held to the operating system; does nothing where the C library is not glibc.

    glibc keeps freed arrays of up to 32 MB in a heap of each thread. Blocks differ in size at the image's edges, and
    leave holes there that add up to a tenth of the process.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "malloc_trim"):
        return None
    # A block's arrays apart from the heap, and the network's, which come and go with each tile, inside.
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    return libc
