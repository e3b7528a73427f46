"""Blocks of a store that are no longer what was written: bits that rotted, files cut short, swapped or deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiling.errors import DamageError, InputError, OutputError
from tiling.record import is_whole
from tiling.store import Store

_NAMED = 5  # damaged blocks in a message


class Damage(NamedTuple):
    """A block that was done, and the arrays in which it is damaged."""

    block: int
    arrays: tuple[str, ...]

    def __str__(self) -> str:
        return f"block {self.block} is damaged in {' and '.join(self.arrays)}"


def damaged(store: Store) -> Iterator[Damage]:
    """Compares the files of every block that is done with its checksums, a file at a time.

    Reads what the maps take on disk: a hundredth of the time of an export.
    """
    return _damaged(store, store.rows(), store.maps)


def mend(store: Store) -> list[Damage]:
    """Makes damaged blocks pending, so that the run computes them again, and says which. Needs the store's lease."""
    found = list(damaged(store))
    store.forget(damage.block for damage in found)
    store.forget([number for number in store.pending() if store.is_blocked(number)])
    return found


def described(found: Sequence[Damage]) -> str:
    """Return the first few damaged blocks in words, and how to mend them."""
    more = f" and {len(found) - _NAMED} more" if found[_NAMED:] else ""
    return f"{'; '.join(map(str, found[:_NAMED]))}{more}; run lmseg segment again to compute it anew"


def check_finished(store: Store, names: Sequence[str]) -> bytes:
    """Check some maps of a store before they are read: every block is done, and its files are what was written.

    Returns:
        The ledger's rows, for `unchanged` to compare after the reading.

    Raises:
        DamageError: with the blocks that are damaged.
        InputError: where blocks are missing.
        ConnectionError: where object storage does not respond.
    """
    rows = store.rows()
    if pending := sum(not store.accepts(number, row) for number, row in enumerate(rows)):
        raise InputError(f"{store.path} still lacks {pending} of {store.grid.n_blocks} blocks; run lmseg segment again")
    if found := list(_damaged(store, rows, names)):
        raise DamageError(f"{store.path}: {described(found)}")
    return rows.tobytes()


@contextmanager
def unchanged(store: Store, ledger: bytes) -> Iterator[None]:
    """Read a store in the block, and give up what was read where another run has written or replaced it meanwhile.

    Readers hold no lock: they may have no right to write beside a store, and object storage has none to offer. Rows of
    the record are written last, deleted first, and hold times that no two runs share, so that equal rows mean that
    nothing was written in between.

    Raises:
        OutputError: where it was written, whatever else went wrong for it.
    """
    try:
        yield
    except ConnectionError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        _check_unchanged(store, ledger, error)
        raise
    _check_unchanged(store, ledger)


def _check_unchanged(store: Store, ledger: bytes, cause: Exception | None = None) -> None:
    # A store in object storage loses its root first.
    if store.rows().tobytes() != ledger or not store.is_there():
        raise OutputError(
            f"{store.path} was written or replaced while it was read, and nothing is kept of it; "
            "wait for that run to end, then read it again"
        ) from cause


def _damaged(store: Store, rows: NDArray[np.void], names: Sequence[str]) -> Iterator[Damage]:
    columns = [store.maps.index(name) for name in names]
    for number, row in enumerate(rows):
        if not store.accepts(number, row):
            continue
        if not is_whole(row):
            yield Damage(number, ("record",))
        elif (wrong := row["files"][columns] != store.checksums(number, names)).any():
            yield Damage(number, tuple(name for name, w in zip(names, wrong, strict=True) if w))
