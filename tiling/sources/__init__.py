"""Where pixels come from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tiling.box import Box
from tiling.errors import InputError
from tiling.extras import require
from tiling.sources.fingerprint import Check
from tiling.space import Space

# What stands in a name in place of a file that is missing: `s2.tif,-,dem.tif`.
MISSING = "-"
# Torch has no arithmetic for the others, and float64 doubles the memory for digits that no sensor has.
_DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32")


class Part(NamedTuple):
    """One of the files that a source joins, and how many of the source's channels it gives."""

    file: str
    channels: int

    @property
    def missing(self) -> bool:
        return self.file == MISSING


class Pixels(NamedTuple):
    """What was read of a box.

    Attributes:
        values: (C, *S) in the source's own dtype; finite wherever `valid`. The reader's to change.
        valid: bool (*S), False where the source holds no data; may be read-only.
        nonfinite: pixels that held NaN or infinity in some band without being nodata.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    nonfinite: int


@runtime_checkable
class Source(Protocol):
    """A picture that is read box by box. Small, immutable and picklable: it holds names, not pixels."""

    @property
    def uri(self) -> str: ...
    @property
    def space(self) -> Space: ...
    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def parts(self) -> tuple[Part, ...]:
        """The files it joins, in the order of their channels; those that are missing give none."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the bytes behind the source do; two are compared by `tiling.sources.fingerprint.same`."""
        ...

    def read(self, box: Box) -> Pixels:
        """The pixels of a box inside the image.

        Raises:
            InputError: where the file cannot give them, or holds other bytes than when it was opened.
        """
        ...


def open(
    uri: str | Path, *, bands: tuple[int, ...] | None = None, form: str | None = None, check: Check = "auto"
) -> Source:
    """A raster or a volume, told apart by name.

    Args:
        uri: path or address, or several joined by commas: bands of one image, or images on one grid. `-` stands for
            a file that is missing, for models that can do without. `.nii` and `.nii.gz` are volumes.
        bands: bands of a raster, counted from 1; all but alpha by default.
        form: `sform` or `qform`, the one to trust where a volume's two disagree.
        check: `content` to read every byte for the fingerprint; by default samples stand for more than 64 MiB.

    Raises:
        InputError: where it cannot be read, or has no usable geometry.
    """
    name = absolute(str(uri))
    if not present(name):
        raise InputError(f"{name!r} names no file; give at least one")
    if is_volume(name):
        require("volumes", "NIfTI volumes")
        from tiling.sources.volume import open_volume
        from tiling.sources.volumes import open_volumes

        if bands is not None:
            raise InputError(f"{name} is a volume and has no bands to choose; leave out --bands")
        return open_volume(name, form, check) if split(name) == (name,) else open_volumes(name, form, check)
    from tiling.sources.raster import open_raster

    if form is not None:
        raise InputError(f"{name} is a raster and has no {form}; leave out --form")
    return open_raster(name, bands, check)


def absolute(uri: str) -> str:
    """The same name with absolute paths, for workers and later commands that run in another folder."""
    names = [_absolute(file) for file in split(uri)]
    # A comma in the current folder would cut a joined name in other places.
    return uri if not names or (len(names) > 1 and any("," in name for name in names)) else ",".join(names)


def _absolute(file: str) -> str:
    if file == MISSING:
        return file
    if os.path.exists(file):
        return os.path.abspath(file)
    if archived := re.match(r"((?:/vsi(?:zip|tar|gzip|7z|rar)/)+\{?|(?:\w+\+file|file|zip|tar|gzip)://)([^/].*)", file):
        prefix, path = archived.groups()
        first = re.split(r"[}!/]", path)[0]
        return prefix + os.path.abspath(path) if os.path.exists(first) else file
    if "://" in file or file.startswith(("/", "<")):
        return file
    # A subdataset such as NETCDF:"a.nc":B02.
    return "".join(
        os.path.abspath(part) if "." in part and os.path.exists(part) else part for part in re.split('([:"])', file)
    )


def split(uri: str) -> tuple[str, ...]:
    """The files that a name joins by commas; a file that exists is one, whatever its name."""
    return (uri,) if os.path.exists(uri) else tuple(filter(None, uri.split(",")))


def present(uri: str) -> tuple[str, ...]:
    """The files that a name joins, without those that are missing."""
    return tuple(file for file in split(uri) if file != MISSING)


def is_volume(uri: str) -> bool:
    """Whether a name is a volume's, which its ending tells.

    Raises:
        InputError: where it joins volumes and rasters.
    """
    kinds = {file.lower().endswith((".nii", ".nii.gz")) for file in present(uri)}
    if len(kinds) > 1:
        raise InputError(f"{uri} joins volumes and rasters; give files of one kind")
    return True in kinds


def common_dtype(*dtypes: Any) -> np.dtype[Any]:
    """The supported type that holds all of these, float32 where none does."""
    dtype = np.result_type(*dtypes).newbyteorder("=")
    return dtype if dtype.name in _DTYPES else np.dtype("float32")


def all_valid(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A read-only mask of nothing missing, which takes no memory."""
    return np.broadcast_to(np.True_, shape)


def mask_nonfinite(values: NDArray[Any], valid: NDArray[np.bool_]) -> Pixels:
    """Masks pixels that are NaN or infinite in any band, and zeroes them.

    Args:
        values: (C, *S), changed in place.
        valid: bool (*S).
    """
    if values.dtype.kind != "f":
        return Pixels(values, valid, 0)
    finite = np.ones(valid.shape, bool)
    for band in values:
        finite &= np.isfinite(band)
    if finite.all():
        return Pixels(values, valid, 0)
    values[:, ~finite] = 0
    return Pixels(values, valid & finite, int(np.count_nonzero(valid & ~finite)))
