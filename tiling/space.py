"""What places an array in the world."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tiling.box import Box
from tiling.errors import InputError

Row = tuple[float, ...]
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Forms:
    """A NIfTI header's own words for its placement, kept so that they can be written back unchanged.

    `pixdim` holds qfac and the three spacings, `quatern` b, c, d, `units` the code of NIfTI's spatial unit.
    """

    qform_code: int
    sform_code: int
    pixdim: tuple[float, float, float, float]
    quatern: Point
    qoffset: Point
    sform: tuple[Row, Row, Row]
    units: int


@dataclass(frozen=True, slots=True)
class Space:
    """The placement of a 2D raster or a 3D volume.

    Attributes:
        shape: (y, x) or (z, y, x).
        affine: rows that map an index (x, y[, z], 1) to the world. A raster's index 0 is the outer corner of the first
            pixel (as in GDAL), a volume's the centre of the first voxel (as in NIfTI); worlds of volumes are RAS+ mm.
        crs: WKT of the coordinate reference system; empty where there is none, and for volumes.
        forms: the NIfTI header's forms, for volumes.
    """

    shape: tuple[int, ...]
    affine: tuple[Row, ...]
    crs: str = ""
    forms: Forms | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def cell(self) -> float:
        """Area (CRS units squared) or volume (mm3) of one element."""
        return abs(float(np.linalg.det(np.array(self.affine)[:, :-1])))

    @property
    def spacing(self) -> tuple[float, ...]:
        """World length of a step along each array axis, in array order."""
        steps = np.linalg.norm(np.array(self.affine)[:, :-1], axis=0)
        return tuple(float(s) for s in steps[::-1])

    def crop(self, box: Box) -> Space:
        """The placement of `box` of this array. Numbers that do not change keep every bit."""
        offset = box.start[::-1]
        forms = self.forms
        if forms is not None and box.shape != self.shape and not (forms.qform_code or forms.sform_code):
            forms = None  # its place is a convention on the whole volume: a part needs an affine of its own
        if forms is not None and any(offset):
            forms = replace(
                forms,
                sform=(
                    _moved(forms.sform[0], offset),
                    _moved(forms.sform[1], offset),
                    _moved(forms.sform[2], offset),
                ),
                qoffset=_moved_point(forms.qoffset, _rotation(forms), offset),
            )
        return replace(self, shape=box.shape, affine=tuple(_moved(r, offset) for r in self.affine), forms=forms)

    def to_world(self, index: tuple[float, ...]) -> tuple[float, ...]:
        """World coordinates (x, y[, z]) of an index in array order."""
        point = (*index[::-1], 1.0)
        return tuple(sum(a * p for a, p in zip(row, point, strict=True)) for row in self.affine)

    def box_around(self, corners: np.ndarray) -> Box:
        """The smallest box of whole elements around world points, cut to the image.

        Args:
            corners: (n, ndim) world coordinates (x, y[, z]).

        Raises:
            InputError: where the points enclose nothing of the image.
        """
        matrix = np.vstack([np.array(self.affine), [0.0] * self.ndim + [1.0]])
        inverse = np.linalg.inv(matrix)[:-1]
        index = (corners @ inverse[:, :-1].T + inverse[:, -1])[:, ::-1]
        # A voxel's index is its centre: it reaches half a step to either side.
        shift = 0.5 if self.ndim == 3 else 0.0
        lower, upper = index.min(axis=0) + shift, index.max(axis=0) + shift
        # 1e-6 of a pixel is rounding of the inverse, not a wish for one more row.
        start = [max(0, math.floor(v + 1e-6)) for v in lower]
        stop = [min(n, math.ceil(v - 1e-6)) for v, n in zip(upper, self.shape, strict=True)]
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            low, high = corners.min(axis=0), corners.max(axis=0)
            raise InputError(
                f"the area {_numbers(low)} to {_numbers(high)} misses the image, "
                f"which spans {self._extent()}; choose an area inside"
            )
        return Box(tuple(start), tuple(stop))

    def bounds(self) -> tuple[Row, Row]:
        """Lowest and highest world coordinates of the image's outer corners."""
        shift = -0.5 if self.ndim == 3 else 0.0
        grids = np.meshgrid(*[(shift, n + shift) for n in self.shape], indexing="ij")
        corners = np.array([self.to_world(tuple(c)) for c in np.stack([g.ravel() for g in grids], axis=1)])
        return tuple(map(float, corners.min(axis=0))), tuple(map(float, corners.max(axis=0)))

    def _extent(self) -> str:
        low, high = self.bounds()
        return f"{_numbers(low)} to {_numbers(high)}"

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; floats survive to the last bit."""
        forms = self.forms
        return {
            "shape": list(self.shape),
            "affine": [list(r) for r in self.affine],
            "crs": self.crs,
            "forms": None
            if forms is None
            else {
                "codes": [forms.qform_code, forms.sform_code],
                "pixdim": list(forms.pixdim),
                "quatern": list(forms.quatern),
                "qoffset": list(forms.qoffset),
                "sform": [list(r) for r in forms.sform],
                "units": forms.units,
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Space:
        forms = data["forms"]
        return cls(
            tuple(data["shape"]),
            tuple(tuple(map(float, r)) for r in data["affine"]),
            data["crs"],
            None
            if forms is None
            else Forms(
                qform_code=forms["codes"][0],
                sform_code=forms["codes"][1],
                pixdim=tuple(forms["pixdim"]),
                quatern=tuple(forms["quatern"]),
                qoffset=tuple(forms["qoffset"]),
                sform=(tuple(forms["sform"][0]), tuple(forms["sform"][1]), tuple(forms["sform"][2])),
                units=forms["units"],
            ),
        )


def _moved(row: Row, offset: tuple[int, ...]) -> Row:
    shift = sum(a * d for a, d in zip(row, offset, strict=False))
    return (*row[:-1], row[-1] + shift if shift else row[-1])


def _moved_point(point: Point, rows: list[Row], offset: tuple[int, ...]) -> Point:
    x, y, z = (p + sum(a * d for a, d in zip(row, offset, strict=True)) for p, row in zip(point, rows, strict=True))
    return x, y, z


def _rotation(forms: Forms) -> list[Row]:
    """Columns of the quaternion form: index steps in mm (NIfTI-1 header, method 2)."""
    b, c, d = forms.quatern
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    qfac, sx, sy, sz = forms.pixdim
    sz *= -1 if qfac == -1 else 1
    return [
        ((a * a + b * b - c * c - d * d) * sx, 2 * (b * c - a * d) * sy, 2 * (b * d + a * c) * sz),
        (2 * (b * c + a * d) * sx, (a * a + c * c - b * b - d * d) * sy, 2 * (c * d - a * b) * sz),
        (2 * (b * d - a * c) * sx, 2 * (c * d + a * b) * sy, (a * a + d * d - b * b - c * c) * sz),
    ]


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{float(v):.8g}" for v in values) + ")"
