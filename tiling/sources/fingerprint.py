"""Which bytes a source is made of, and whether they are still those that were opened.

A fingerprint tells two sources apart by what is in their files, never by names or times alone:

- Files of 64 MiB in all are read whole. Nothing else counts: a copy, a file that was moved or only touched is the same.
- Of more, the sizes and 16 MiB of samples spread over all files are compared, and each file's path and time of
  modification. Where path or time differ, the source counts as another: samples cannot tell that it is the same.
- With `check="content"` every byte is read, whatever the size. Two such fingerprints are compared by contents, and
  paths and times do not count; one is compared with a fingerprint made of samples as above.

What this cannot see: bytes between the samples that change in a large file which keeps its path, size and time. Only
`check="content"` can.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from tiling.errors import InputError

Check = Literal["auto", "content"]

WHOLE = 64 * 2**20  # bytes of all files together that are always read: a tenth of a second
_PIECE = 32 * 2**10  # bytes of a sample
_PIECES = 512  # samples of all files together, and at least two of each
_SAMPLED_FILES = 4096  # of more files, only these are sampled; sizes and times are those of all
_READ = 2**20


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The local files and folders that a source is made of, as they were when it was opened.

    Attributes:
        names: absolute paths; of a folder, every file in it counts.
        check: how much of them is read.
        stamp: digest of path, size and time of every file: while it is the same, nothing needs to be read.
        digest: their fingerprint.
    """

    names: tuple[str, ...]
    check: Check
    stamp: str
    digest: str

    @classmethod
    def of(cls, names: Iterable[str], check: Check = "auto") -> LocalFiles:
        """Look at files and folders, in this order.

        Raises:
            InputError: where one of them is gone or cannot be read.
        """
        names = tuple(map(os.path.abspath, names))
        # The stamp first: a file that changes while it is read then has another one.
        stamp = _stamp(names)
        return cls(names, check, stamp, _digest(names, check))

    def changed(self) -> bool:
        """Whether the files hold other bytes now; that a file was only touched is no change."""
        try:
            stamp = _stamp(self.names)
            return stamp != self.stamp and not same(_digest_once(self.names, self.check, stamp), self.digest)
        except InputError:
            return True

    def fingerprint(self, *words: object) -> str:
        """The fingerprint of the files and of `words`, which also decide what is read."""
        samples, *rest = self.digest.split("/")
        return "/".join([hashlib.sha256(repr((words, samples)).encode()).hexdigest(), *rest])


def check_unchanged(uri: str, files: LocalFiles) -> None:
    """Refuse a source whose files hold other bytes than when it was opened.

    Raises:
        InputError: where they do, or are gone.
    """
    if files.changed():
        raise changed(uri)


def changed(uri: str) -> InputError:
    """The error for a source that is another than was opened."""
    return InputError(f"{uri} changed while it was segmented; put the old file back and run again, or pass --fresh")


def same(first: str, second: str) -> bool:
    """Whether two fingerprints are of the same source."""
    a, b = first.split("/"), second.split("/")
    if len(a) != 3 or len(b) != 3 or a[0] != b[0]:
        return first == second
    return a[2] == b[2] if a[2] and b[2] else a[1] == b[1]


def undecided(first: str, second: str) -> bool:
    """Whether only paths or times tell two fingerprints apart: samples agree, and contents are not known of both."""
    a, b = first.split("/"), second.split("/")
    return len(a) == len(b) == 3 and a[0] == b[0] and a[1] != b[1] and not (a[2] and b[2])


class _File(NamedTuple):
    """A file: where it lies in its folder, empty where it is named itself; its path, bytes and time in nanoseconds."""

    inside: str
    path: str
    size: int
    time: int


def _files(names: Sequence[str]) -> Iterator[_File]:
    for name in names:
        if not os.path.isdir(name):
            yield _file("", name)
            continue
        for folder, folders, files in os.walk(name):
            folders.sort()
            for file in sorted(files):
                # Statistics that viewers write; what else they may say of an image is asked of GDAL.
                if not file.endswith(".aux.xml"):
                    path = os.path.join(folder, file)
                    yield _file(os.path.relpath(path, name), path)


def _file(inside: str, path: str) -> _File:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; fetch or write the file again") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is no regular file; give a file or a folder of files")
    return _File(inside, path, status.st_size, status.st_mtime_ns)


def _stamp(names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in _files(names):
        digest.update(repr(file).encode())
    return digest.hexdigest()


def _digest(names: Sequence[str], check: Check) -> str:
    """`contents` where all was read, else `samples/paths and times/contents`, the last empty where unknown."""
    files = list(_files(names))
    total = sum(file.size for file in files)
    if total <= WHOLE:
        return _contents(files)
    samples = hashlib.sha256(_sizes(files))
    for file in files[:: -(-len(files) // _SAMPLED_FILES)]:
        for start, length in _pieces(file.size, max(2, round(_PIECES * file.size / total))):
            for part in _read(file, start, length):
                samples.update(part)
    places = hashlib.sha256(repr([(os.path.realpath(file.path), file.time) for file in files]).encode())
    return f"{samples.hexdigest()}/{places.hexdigest()}/{_contents(files) if check == 'content' else ''}"


@lru_cache(maxsize=64)
def _digest_once(names: tuple[str, ...], check: Check, stamp: str) -> str:
    # A file that was touched during a run is read again once, not for every block. Never when a source is opened:
    # there the stamp is no proof.
    return _digest(names, check)


def _contents(files: Sequence[_File]) -> str:
    contents = hashlib.sha256(_sizes(files))
    for file in files:
        for part in _read(file, 0, file.size):
            contents.update(part)
    return contents.hexdigest()


def _sizes(files: Sequence[_File]) -> bytes:
    return repr([(file.inside, file.size) for file in files]).encode()


def _pieces(size: int, count: int) -> list[tuple[int, int]]:
    """Start and length of `count` samples from the first byte to the last, or of all bytes where those are fewer."""
    if size <= count * _PIECE:
        return [(0, size)]
    return [(number * (size - _PIECE) // (count - 1), _PIECE) for number in range(count)]


def _read(file: _File, start: int, length: int) -> Iterator[bytes]:
    try:
        with open(file.path, "rb", buffering=0) as stream:
            stream.seek(start)
            while length > 0 and (part := stream.read(min(length, _READ))):
                length -= len(part)
                yield part
    except OSError as error:
        raise InputError(f"{file.path} cannot be read: {error.strerror}; fetch or write the file again") from error
