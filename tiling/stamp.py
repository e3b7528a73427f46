"""Whether the files behind a source are still those that were opened, by a glance that costs nothing."""

from __future__ import annotations

import os

from tiling.sources import Source

# Name, bytes, and time of modification in nanoseconds of a file.
Stamp = tuple[tuple[str, int, int], ...]


def stamp_of(source: Source) -> Stamp:
    """The local files that are read for a source; empty where there are none.

    It holds what `Source.fingerprint` looks at first, and neither masks beside an image nor files that a VRT names:
    the fingerprint itself tells those, at the next opening.
    """
    files = [source.uri] if os.path.isfile(source.uri) else source.uri.split(",")
    return tuple(
        (os.path.basename(file), status.st_size, status.st_mtime_ns)
        for file in files
        if os.path.isfile(file)
        for status in (os.stat(file),)
    )
