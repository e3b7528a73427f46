"""Where pixels come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tiling.box import Box
from tiling.errors import InputError
from tiling.space import Space


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
    def fingerprint(self) -> str:
        """Changes when the bytes behind the source do."""
        ...

    def read(self, box: Box) -> Pixels:
        """The pixels of a box inside the image; InputError where the file cannot give them."""
        ...


def open(uri: str | Path, *, bands: tuple[int, ...] | None = None, form: str | None = None) -> Source:
    """A raster or a volume, told apart by name.

    Args:
        uri: path or address; band files of one image joined by commas; `.nii` and `.nii.gz` are volumes.
        bands: bands of a raster, counted from 1; all but alpha by default.
        form: `sform` or `qform`, the one to trust where a volume's two disagree.

    Raises:
        InputError: where it cannot be read, or has no usable geometry.
    """
    name = str(uri)
    if name.lower().endswith((".nii", ".nii.gz")):
        from tiling.sources.volume import open_volume

        if bands is not None:
            raise InputError(f"{name} is a volume and has no bands to choose; leave out --bands")
        return open_volume(name, form)
    from tiling.sources.raster import open_raster

    if form is not None:
        raise InputError(f"{name} is a raster and has no {form}; leave out --form")
    return open_raster(name, bands)


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
