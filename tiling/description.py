"""What a store says of itself: the attributes of its root, and checksums of every file that is no block's."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from tiling.address import Address
from tiling.classes import ClassTable
from tiling.errors import DamageError, InputError
from tiling.grid import Axis, Grid
from tiling.place import ROOT, place_of, read_all, unreadable

# Goes up when stores lie otherwise.
LAYOUT = 4

# Beside the ledger, for Zarr lists what lies in a group and not what lies in an array.
SUMS = "record/sums.txt"
_LINE = re.compile(r"[0-9a-f]{64}  (\w+(?:/\w+)*(?:\.json)?)")
_MOST_BLOCKS = 10_000_000


def seal(folder: Path) -> None:
    """Write the SHA-256 of each file of a store that has no block yet, in the form of `sha256sum`."""
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    (folder / SUMS).write_bytes(_sums({name: (folder / name).read_bytes() for name in files}))


def read_attributes(path: Address) -> dict[str, Any]:
    """Return the attributes of a run's store, after every file but those of blocks was checked.

    Raises:
        DamageError: where one of these files is not what was written.
        InputError: where there is no store of a run, or one of another version; where a file cannot be read.
        ConnectionError: where object storage does not respond.
    """
    if isinstance(path, Path) and path.is_dir():
        _check_plain(path)
    sums = _read(path / SUMS)
    if sums is None or place_of(path).is_empty():  # or half made, or half removed
        attributes = raw_attributes(path)
        if attributes is None:
            raise InputError(f"{path} is no store of a run; give the .zarr folder that lmseg segment wrote")
        _check_layout(path, attributes)
        raise _damage(path, f"{SUMS} is missing")
    names = [match[1] for match in map(_LINE.fullmatch, sums.decode("ascii", "replace").splitlines()) if match]
    contents = dict(zip(names, read_all(path / name for name in names), strict=True))
    if missing := [name for name in (ROOT, *names) if contents.get(name) is None]:
        raise _damage(path, f"{missing[0]} is missing")
    found = {name: content for name, content in contents.items() if content is not None}
    if _sums(found) != sums:
        lines = sums.splitlines()
        wrong = [name for name, content in found.items() if _line(name, content) not in lines]
        raise _damage(path, f"{wrong[0] if wrong else SUMS} is not what was written")
    attributes = _parsed(found[ROOT])
    if attributes is None:
        raise _damage(path, f"{ROOT} does not describe a run")
    _check_layout(path, attributes)
    _check(path, attributes)
    return attributes


def raw_attributes(path: Address) -> dict[str, Any] | None:
    """Return what the root says, unchecked; None where it makes no sense or there is none."""
    try:
        content = place_of(path / ROOT).read()
    except ConnectionError:
        raise
    except OSError:
        return None
    return _parsed(content or b"")


def is_ours(path: Address) -> bool:
    """Return whether what lies at an address is the store of a run, damaged or not."""
    if raw_attributes(path) is not None:
        return True
    try:
        return (_read(path / SUMS) or b"").startswith(_HEAD.encode())
    except InputError:
        return False


_HEAD = "# lmseg store: SHA-256 of its "


def _sums(contents: dict[str, bytes]) -> bytes:
    head = f"{_HEAD}{len(contents)} files without blocks\n".encode()
    return head + b"".join(_line(name, content) + b"\n" for name, content in contents.items())


def _line(name: str, content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {name}".encode()


def _read(file: Address) -> bytes | None:
    (content,) = read_all([file])
    return content


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        attributes = json.loads(content)["attributes"]["lmseg"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return attributes if isinstance(attributes, dict) else None


def _check_plain(path: Path) -> None:
    """Refuse a folder with anything but folders and plain files: what is behind a link is somebody else's.

    Raises:
        DamageError: with the first link, pipe or device.
        InputError: where a folder cannot be listed.
    """
    folders = [os.fspath(path)]
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        raise _damage(path, f"{os.path.relpath(entry.path, path)} is a link or no plain file")
    except OSError as error:
        raise unreadable(error.filename or path, error) from error


def _damage(path: Address, what: str) -> DamageError:
    return DamageError(f"{path} is damaged: {what}; run lmseg segment with --fresh to make it anew")


def _check_layout(path: Address, attributes: dict[str, Any]) -> None:
    if attributes.get("layout") != LAYOUT:
        raise InputError(
            f"{path} was written by another version of lmseg; segment the image again with --fresh, or use that version"
        )


# --- what attributes must look like ---


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Forms(_Model):
    codes: tuple[int, int]
    pixdim: tuple[float, float, float, float]
    quatern: tuple[float, float, float]
    qoffset: tuple[float, float, float]
    sform: tuple[tuple[float, float, float, float], ...] = Field(min_length=3, max_length=3)
    units: int


class _Space(_Model):
    shape: tuple[PositiveInt, ...] = Field(min_length=2, max_length=3)
    affine: tuple[tuple[FiniteFloat, ...], ...]
    crs: str
    forms: _Forms | None


class _Area(_Model):
    start: tuple[NonNegativeInt, ...]
    stop: tuple[NonNegativeInt, ...]
    shapes: tuple[str, ...]


class _Class(_Model):
    value: int
    name: str
    color: str
    code: str | None


class _Attributes(_Model):
    model_config = ConfigDict(strict=True, extra="ignore")

    uri: str
    space: _Space
    area: _Area
    grid: tuple[tuple[int, int, int, int, int, int], ...]
    classes: tuple[_Class, ...]
    outputs: tuple[Literal["probability", "uncertainty"], ...]
    made_from: dict[str, str]


def _check(path: Address, attributes: dict[str, Any]) -> None:
    """Refuse attributes that no run wrote: of other types, or that contradict each other.

    Raises:
        DamageError: with the first that is wrong.
    """
    try:
        checked = _Attributes.model_validate_json(json.dumps(attributes))
        grid = Grid(tuple(Axis(*axis) for axis in checked.grid))
        ClassTable.from_json([c.model_dump() for c in checked.classes])
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise _damage(path, f"{name} of {ROOT}: {first['msg']}") from error
    except (InputError, ValueError) as error:
        raise _damage(path, f"{ROOT}: {error}") from error
    ndim = len(checked.space.shape)
    for name, right in {
        "grid": grid.shape == checked.space.shape and grid.n_blocks <= _MOST_BLOCKS,
        "area": (checked.area.start, checked.area.stop) == (grid.area.start, grid.area.stop),
        "affine": [len(row) for row in checked.space.affine] == [ndim + 1] * ndim,
        "outputs": len(set(checked.outputs)) == len(checked.outputs),
    }.items():
        if not right:
            raise _damage(path, f"{name} of {ROOT} does not fit the rest")
