"""Memory of freed arrays: kept between tiles, given back to the system between blocks."""

import ctypes
import sys
from functools import cache
from typing import Any

# malloc.h, and the largest size it takes for an array apart from the heap
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE = 32 * 2**20
_NEVER = 2**31 - 1


@cache
def keep_pages() -> Any:
    """Has freed arrays wait in one heap for the next tile's; best before any thread begins.

    Returns:
        The C library, or None where it is not glibc.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "malloc_trim"):
        return None
    # The network's arrays come and go with each tile. Apart from the heap, or where its top is given back each time,
    # the system clears their pages for every tile anew, which takes a third of the time in 3D.
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    # Else each thread keeps what it freed to itself: 70 to 100 MiB more.
    libc.mallopt(_M_ARENA_MAX, 1)
    return libc


def give_back() -> None:
    """Returns what freed arrays held to the operating system; does nothing where the C library is not glibc.

    Blocks differ in size at the image's edges, and leave holes in the heap that add up to a tenth of the process.
    """
    libc = keep_pages()
    if libc is not None:
        libc.malloc_trim(0)
