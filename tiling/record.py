"""What a store keeps of each block: one row of bytes, which is there or not."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Where the time of a block goes. Reading and writing have threads of their own; in the others the device has no other
# work: it waits for what is read and for the way of the raw block to it, scores, blends, and waits for the block before
# to be written.
STEPS = ("read", "wait", "move", "network", "blend", "hold", "write")


def row_type(classes: int, maps: int) -> np.dtype[np.void]:
    """The fields of a row, packed and little-endian.

    `digest` (32 bytes): of everything the block's answer depends on. `counts` (K + 3): pixels of each class, without an
    answer, and not finite; tiles predicted. `files` (maps): CRC-32 of the files that hold the block in each map.
    `seconds` (7): spent in each of `STEPS`. `own`: CRC-32 of the fields before it. All but the last two are the same in
    every run.
    """
    return np.dtype(
        [
            ("digest", "u1", 32),
            ("counts", "<i8", (classes + 3,)),
            ("files", "<u4", (maps,)),
            ("seconds", "<f8", (len(STEPS),)),
            ("own", "<u4"),
        ]
    )


def make_row(
    kind: np.dtype[np.void], digest: bytes, counts: Sequence[int], files: Sequence[int], seconds: Sequence[float]
) -> bytes:
    """The row of a block that is done."""
    row = np.zeros((), kind)
    row["digest"] = np.frombuffer(digest, np.uint8)
    row["counts"], row["files"], row["seconds"] = counts, files, seconds
    row["own"] = _crc(row)
    return row.tobytes()


def read_rows(kind: np.dtype[np.void], contents: Sequence[bytes | None]) -> NDArray[np.void]:
    """The rows in what files hold; zeros where there is none, or another length."""
    blank = bytes(kind.itemsize)
    whole = (c if c is not None and len(c) == kind.itemsize else blank for c in contents)
    return np.frombuffer(b"".join(whole), kind)


def is_whole(row: np.void) -> bool:
    """Whether a row says what was written."""
    return bool(row["own"] == _crc(row))


def _crc(row: NDArray[np.void] | np.void) -> int:
    assert row.dtype.fields is not None
    return zlib.crc32(row.tobytes()[: row.dtype.fields["own"][1]])
