"""Pixels that are in memory already."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.box import Box
from tiling.errors import InputError
from tiling.sources import Part, Pixels, all_valid, mask_nonfinite
from tiling.space import Space


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A numpy or memory-mapped array (C, *S) as a source.

    Args:
        values: (C, y, x) or (C, z, y, x).
        space: placement; by default index = world.
        nodata: value that marks a pixel as missing where every band holds it.

    Raises:
        InputError: where the array has no pixels or fits neither a raster nor a volume.
    """

    values: NDArray[Any]
    space: Space = field(default_factory=lambda: Space((), ()))
    nodata: float | None = None
    uri: str = "array"

    def __post_init__(self) -> None:
        if self.values.ndim not in (3, 4) or self.values.size == 0:
            raise InputError(
                f"{self.uri} has shape {self.values.shape}; give (C, y, x) or (C, z, y, x) with pixels in it"
            )
        if not self.space.shape:
            ndim = self.values.ndim - 1
            rows = np.eye(ndim, ndim + 1).tolist()
            object.__setattr__(self, "space", Space(self.values.shape[1:], tuple(map(tuple, rows))))

    @property
    def channels(self) -> int:
        return int(self.values.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part(self.uri, self.channels),)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.values.shape, self.values.dtype.str, self.nodata, self.space)).encode())
        for band in self.values:
            digest.update(band.tobytes())
        return digest.hexdigest()

    def read(self, box: Box) -> Pixels:
        """A copy of the box: the engine may write into it."""
        values = np.array(self.values[(slice(None), *box.slices)])
        valid = all_valid(box.shape)
        if self.nodata is not None:
            valid = ~(values == self.nodata).all(axis=0)
        return mask_nonfinite(values, valid)
