"""Memory of freed arrays, given back to the system."""

import ctypes
import sys
from functools import cache
from typing import Any

# malloc.h, and the largest size it takes for an array apart from the heap
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 32 * 2**20
_NEVER = 2**31 - 1


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
    # The network's arrays come and go with each tile. Apart from the heap, or where its top is given back each time,
    # the system clears their pages for every tile anew, which takes a third of the time in 3D.
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return libc
