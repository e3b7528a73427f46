"""Which files belong to a run and may be replaced by it: a note in the run's store of the content of each one.

The note of a file is `record/files/<digest of its name>.json`, where Zarr looks for nothing. It is written before the
file gets its name, so a run that is killed in between recognises its files. A file with another content is somebody
else's, whatever its name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiling.address import Address, ObjectPath
from tiling.errors import InputError
from tiling.heap import give_back
from tiling.place import Content, place_of
from tiling.sources import is_volume, present

_ATTEMPTS = 10  # at writing a note that somebody else writes at the same time


@dataclass(frozen=True)
class Owner:
    """A run that writes files.

    Attributes:
        store: of the run, which keeps the notes.
        inputs: sources, folders and files that the run reads; they are never replaced.
        overwrite: whether files of others may be replaced.
    """

    store: Address
    inputs: tuple[str, ...]
    overwrite: bool = False

    def check(self, files: Iterable[Address]) -> dict[Address, Content | None]:
        """Return those of some files that exist and may be replaced, with the content that the run noted.

        Raises:
            InputError: naming a file that may not be replaced.
            ConnectionError: where object storage does not answer.
        """
        taken = [file for file in files if _is_taken(file)]
        # What is not there cannot be lost, and an input may be made of thousands of files.
        if not taken and isinstance(self.store, Path) and not self.store.exists():
            return {}
        inputs = [name for source in self.inputs for name in _names(source)]
        if read := next((name for name in inputs if _lies_in(name, self.store)), None):
            raise InputError(f"{read} lies in {self.store}, which the run writes; choose another output folder")
        return {file: self._check_one(file, inputs) for file in taken}

    def _check_one(self, file: Address, inputs: list[str]) -> Content | None:
        if _is_input(file, inputs):
            raise InputError(f"{file} is an input of this run, and inputs are never replaced; choose another output")
        if content := place_of(file).identify(self._noted(file)):
            return content
        if isinstance(file, Path) and file.is_dir() and not file.is_symlink():
            raise InputError(f"{file} is a folder, where a file is to be written; move it or choose another output")
        if folder := next((name for name in inputs if os.path.isdir(name) and _lies_in(str(file), Path(name))), None):
            raise InputError(f"{file} belongs to {folder}, an input of this run; choose another output")
        if not self.overwrite:
            raise _foreign(file)
        return None

    @contextmanager
    def publish(self, out: Address) -> Iterator[Path]:
        """A folder to make `out` in; at the end each file in it gets its name beside `out`, `out` last.

        Nothing gets a name after an error.

        Raises:
            InputError: where a file may not be replaced, or there is no room or no right to write.
            ConnectionError: where object storage does not answer.
        """
        folder = place_of(out.parent)
        try:
            with folder.staging(out.name) as staging:
                yield staging
                staged = sorted(staging.iterdir(), key=lambda file: file.name == out.name)
                existing = self.check([out.with_name(file.name) for file in staged])
                for file in staged:
                    target = out.with_name(file.name)
                    old, new = existing.get(target), Content.of(file)
                    self._note(target, [new] if old in (None, new) else [old, new])
                    # A server may lose the answer to a file that it took.
                    if not folder.take(file, target in existing) and not place_of(target).identify([new]):
                        raise _foreign(target)
        except ConnectionError:
            raise
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error}; choose another folder or free some space") from error
        finally:
            give_back()

    def notes(self, files: Iterable[Address]) -> dict[Address, bytes]:
        """What the store holds on these files, to `restore` it to a store that takes its place."""
        notes = ((file, _read(self._note_of(file))) for file in files)
        return {file: note for file, note in notes if note is not None}

    def restore(self, notes: Mapping[Address, bytes]) -> None:
        """Writes notes of an earlier store into the one that took its place."""
        for file, note in notes.items():
            place_of(self._note_of(file)).create(note)

    def _noted(self, file: Address) -> list[Content]:
        try:
            return [Content(int(size), str(digest)) for size, digest in json.loads(_read(self._note_of(file)) or "[]")]
        except (TypeError, ValueError):
            return []

    def _note(self, file: Address, contents: list[Content | None]) -> None:
        place, new = place_of(self._note_of(file)), json.dumps(contents).encode()
        try:
            for _ in range(_ATTEMPTS):
                old = place.read()
                if place.create(new) if old is None else old == new or place.replace(old, new):
                    return
        except ConnectionError:
            raise
        except (OSError, InputError) as error:
            # A store may be read by those who may not write it. What they export is not replaced without `overwrite`.
            if isinstance(error, OSError) and error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise

    def _note_of(self, file: Address) -> Address:
        # By name beside the store, so that a folder can be moved with all that is in it.
        beside = type(file) is type(self.store) and _real(file.parent) == _real(self.store.parent)
        key = file.name if beside else str(file)
        return self.store / "record" / "files" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _foreign(file: Address) -> InputError:
    return InputError(
        f"{file} exists and is not what this run wrote; move it, choose another output, or pass --overwrite"
    )


def _read(file: Address) -> bytes | None:
    try:
        return place_of(file).read()
    except ConnectionError:
        raise
    except OSError:
        return None


def _is_taken(file: Address) -> bool:
    """Whether there is anything of this name, be it a link to nowhere."""
    return os.path.lexists(file) if isinstance(file, Path) else place_of(file).exists()


def _names(source: str) -> Iterator[str]:
    """The files of an input: those that it joins, and those that GDAL reads for each of them."""
    for file in present(source):
        yield file
        if os.path.isfile(file) and not is_volume(file):
            from rasterio.errors import RasterioError

            from tiling.sources.raster import quietly_open

            try:
                with quietly_open(file) as dataset:
                    yield from dataset.files
            except (RasterioError, InputError):
                continue  # an area of interest, or weights


def _is_input(file: Address, inputs: Iterable[str]) -> bool:
    if isinstance(file, ObjectPath):
        return any(_object_name(name) == str(file) for name in inputs)
    return any(_is_same(file, name) for name in inputs)


def _is_same(file: Path, name: str) -> bool:
    """Whether two names are one file's, by links of either kind or by case."""
    if os.path.realpath(file) == os.path.realpath(name):
        return True
    try:
        return os.path.samefile(file, name)
    except (OSError, ValueError):
        return False


def _lies_in(name: str, folder: Address) -> bool:
    if isinstance(folder, ObjectPath):
        return f"{_object_name(name)}/".startswith(f"{folder}/")
    return Path(os.path.realpath(name)).is_relative_to(os.path.realpath(folder))


def _object_name(name: str) -> str:
    return f"s3://{name.removeprefix('/vsis3/')}" if name.startswith("/vsis3/") else name


def _real(folder: Address) -> Address:
    return Path(os.path.realpath(folder)) if isinstance(folder, Path) else folder
