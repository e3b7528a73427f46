"""What is done where a run lies that files and objects do each in their own way.

Folders rename and link; object storage puts an object on a condition. Either way a file or a store appears whole or not
at all, one of many who create a file at once succeeds, and nobody overwrites what they have not seen.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import zarr

from tiling.address import Address
from tiling.errors import InputError

ROOT = "zarr.json"  # of a store; where it is missing, there is none
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # of file systems without hard links
_AT_ONCE = 16  # objects that are read side by side: each is an answer to wait for


class Content(NamedTuple):
    """What a file holds: its length in bytes, and their digest."""

    size: int
    sha256: str

    @classmethod
    def of(cls, file: Path) -> Content:
        """The content of a file of this machine."""
        with file.open("rb") as stream:
            return cls(file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


class Place(ABC):
    """A file, a folder of results, or the store of a run.

    Everything raises InputError where a server refuses it for good and ConnectionError where it does not answer; a
    folder raises what its file system does.
    """

    # --- a file ---

    @abstractmethod
    def read(self) -> bytes | None:
        """What it holds; None where there is none."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def identify(self, contents: Sequence[Content]) -> Content | None:
        """Return the one of some contents that the file has; None where it has another, or is no regular file."""

    @abstractmethod
    def create(self, content: bytes) -> bool:
        """Makes it, whole and only if there is none; False where there was one, or may have been."""

    @abstractmethod
    def replace(self, old: bytes, new: bytes) -> bool:
        """Puts `new` in the place of `old`; False where it holds something else, or is gone."""

    @abstractmethod
    def delete(self) -> None:
        """Deletes it; nothing happens where there is none."""

    @abstractmethod
    def fetched(self) -> AbstractContextManager[Path]:
        """It as a file of this machine, for the time of the block."""

    # --- a folder of results ---

    @abstractmethod
    def check_writable(self) -> None:
        """Makes the folder, and refuses one in which nothing can be made.

        Raises:
            InputError: with what to do about it.
        """

    @abstractmethod
    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A folder of this machine in which the file `name` is made, for the time of the block."""

    @abstractmethod
    def take(self, file: Path, replace: bool) -> bool:
        """Gives a staged file its name here.

        Args:
            replace: whether it takes the place of what has this name. If not, and something has, nothing happens and
                the result is False.
        """

    # --- a store ---

    @abstractmethod
    def is_blocked(self) -> bool:
        """Whether a file of a store cannot be made: a folder has its name, or a file that of a folder above it."""

    @abstractmethod
    def clear(self) -> None:
        """Deletes a file of a store, or whatever has taken its place."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether a store can be made here."""

    @abstractmethod
    def make(self, fill: Callable[[Path], None]) -> None:
        """Has `fill` write a store to a path that is free, and gives it its place, whole or not at all."""

    @abstractmethod
    def remove(self) -> None:
        """Deletes a store, and everything under it."""

    @abstractmethod
    def array(self, name: str, version: str) -> zarr.Array[Any]:
        """An array of a store, opened for reading and writing.

        Args:
            version: tells the store from others that lay here before; what is opened is kept for later calls.
        """


class Folder(Place):
    """On a file system of this machine, or mounted from another."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        try:
            # A pipe would be waited for, and a device has no end.
            with open(self._path, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is no plain file")
                return stream.read()
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        return self._path.is_file()

    def identify(self, contents: Sequence[Content]) -> Content | None:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            status = self._path.lstat()
            if stat.S_ISREG(status.st_mode) and any(content.size == status.st_size for content in contents):
                here = Content.of(self._path)
                return here if here in contents else None
        return None

    def create(self, content: bytes) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._written(content) as part:
            try:
                os.link(part, self._path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with suppress(FileExistsError), self._path.open("xb") as stream:
                    stream.write(content)
                    return True
                return False
        return True

    def replace(self, old: bytes, new: bytes) -> bool:
        with suppress(FileNotFoundError), self._path.open("r+b") as stream:
            # Of all who saw `old` one may pass. The lock is that of the old file, and goes with whoever holds it; file
            # systems without locks leave a gap of microseconds.
            with suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX)
            here = os.fstat(stream.fileno())
            if os.path.samestat(here, self._path.stat()) and stream.read() == old:
                with self._written(new) as part:
                    part.replace(self._path)
                return True
        return False

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        yield self._path

    def check_writable(self) -> None:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=".lmseg-", dir=self._path):
                pass
        except OSError as error:
            message = f"{self._path} cannot be written: {error.strerror}; choose another output folder"
            raise InputError(message) from error

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        self._path.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._path))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take(self, file: Path, replace: bool) -> bool:
        target = self._path / file.name
        if not replace:
            try:
                os.link(file, target)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            try:
                target.touch(exist_ok=False)
            except FileExistsError:
                return False
        file.replace(target)
        return True

    def is_blocked(self) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(self._path).st_mode)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True

    def clear(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except NotADirectoryError:
            next(parent for parent in self._path.parents if parent.is_file()).unlink()
        except (IsADirectoryError, PermissionError):  # as systems differ
            if not self._path.is_dir():
                raise
            shutil.rmtree(self._path)

    def is_empty(self) -> bool:
        return not self._path.exists() or (self._path.is_dir() and not any(self._path.iterdir()))

    def make(self, fill: Callable[[Path], None]) -> None:
        # Under another name: a run that is killed meanwhile leaves no store that is half there.
        part = self._part
        shutil.rmtree(part, ignore_errors=True)
        try:
            fill(part)
            part.replace(os.path.realpath(self._path))
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def remove(self) -> None:
        if self._path.exists():
            # All at once for those who read it: labels must not be gone while the ledger still has them.
            part = self._part
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(Path(os.path.realpath(self._path)).replace(part))

    @property
    def _part(self) -> Path:
        """Where a store is half there: beside it, and beside what it is a link to."""
        real = Path(os.path.realpath(self._path))
        return real.with_name(f".{real.name}.part")

    def array(self, name: str, version: str) -> zarr.Array[Any]:
        return _opened(self._path / name, version)

    @contextmanager
    def _written(self, content: bytes) -> Iterator[Path]:
        part = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        try:
            part.write_bytes(content)
            yield part
        finally:
            part.unlink(missing_ok=True)


@lru_cache(maxsize=32)
def _opened(path: Path, version: str) -> zarr.Array[Any]:
    return zarr.open_array(path, mode="r+")


def place_of(address: Address) -> Place:
    """What can be done at an address."""
    if isinstance(address, Path):
        return Folder(address)
    # Most runs need no client of object storage.
    from tiling.bucket import Bucket

    return Bucket(address)


def read_all(files: Iterable[Address]) -> Iterator[bytes | None]:
    """What files of a store hold, in their order; None for those that are not there.

    Raises:
        InputError: where one is there and cannot be read.
    """
    places = [(file, place_of(file)) for file in files]
    if all(isinstance(place, Folder) for _, place in places):
        yield from (_content(*place) for place in places)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda place: _content(*place), places)


def _content(file: Address, place: Place) -> bytes | None:
    try:
        return place.read()
    except (IsADirectoryError, NotADirectoryError):  # what Zarr takes for a missing chunk
        return None
    except ConnectionError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Address | str, error: OSError) -> InputError:
    """Return what to say of a file of a store that is there and cannot be read."""
    why = f"{file} cannot be read: {error.strerror}"
    return InputError(f"{why}; see to its permissions and its disk, or run lmseg segment with --fresh")
