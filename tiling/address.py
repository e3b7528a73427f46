"""Where files lie: in a folder, or in object storage by an address such as s3://bucket/prefix."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tiling.errors import InputError

_SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """An object, or what lies under a prefix, by the words that `pathlib.Path` has for a file and a folder."""

    bucket: str
    key: str

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}" if self.key else name)

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def absolute(self) -> ObjectPath:
        return self

    def as_uri(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}" if self.key else f"{_SCHEME}{self.bucket}"


Address = Path | ObjectPath


def address_of(name: str | Address) -> Address:
    """A folder or file by its absolute path, or what an s3:// address names.

    Raises:
        InputError: for an address that is neither.
    """
    if isinstance(name, ObjectPath):
        return name
    if isinstance(name, Path) or "://" not in name:
        return Path(os.path.abspath(name))
    bucket, _, key = name.removeprefix(_SCHEME).rstrip("/").partition("/")
    parts = key.split("/") if key else []
    if not name.startswith(_SCHEME) or not bucket or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{name} is no place for a run; give a folder or an address such as s3://bucket/prefix")
    return ObjectPath(bucket, key)
