"""How large an image's pixels are, and whether a model was tested with such."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError

from tiling.box import Box
from tiling.predict import ras_order
from tiling.space import Space

_WGS84 = Geod(ellps="WGS84")  # another ellipsoid changes a pixel by less than a thousandth
_EDGE = 1e-3  # share of a bound by which spacings that headers round may miss it


class Scale(NamedTuple):
    """The pixels a model is for.

    Attributes:
        sides: metres (y, x) of a raster's pixel on the ground, millimetres (z, y, x) of a volume's voxel in RAS+ order.
        tested: the smallest and the largest multiple of it that the model was tested with.
    """

    sides: tuple[float, ...]
    tested: tuple[float, float]

    def covers(self, sides: Sequence[float]) -> bool:
        """Whether the model was tested with pixels of these sides."""
        low, high = self.tested
        return all(
            low * (1 - _EDGE) <= side / own <= high * (1 + _EDGE) for side, own in zip(sides, self.sides, strict=True)
        )

    def difference(self, sides: Sequence[float], uri: str, model: str) -> str:
        """Return in words how an image's pixels differ from those of a model's."""
        unit, what = ("m", "pixels") if len(sides) == 2 else ("mm", "voxels")
        low, high = self.tested
        return (
            f"{uri} has {what} of {_sides(sides)} {unit}, but {model} is for {_sides(self.sides)} {unit} and was "
            f"tested from {low:g} to {high:g} times that; resample it to {_sides(self.sides)} {unit}"
        )


def pixel_sides(space: Space, box: Box) -> tuple[float, ...] | None:
    """Return the sides of a pixel, as `Scale` has them, in the middle of a box; None where no CRS says it."""
    if space.ndim == 3:
        order, _ = ras_order(space.affine)
        return tuple(space.spacing[axis] for axis in order)
    try:
        if not space.crs:
            return None
        to_degrees = Transformer.from_crs(CRS.from_wkt(space.crs), "EPSG:4326", always_xy=True)
        y, x = ((a + b) / 2 for a, b in zip(box.start, box.stop, strict=True))
        sides = []
        for index in ((0.5, 0.0), (0.0, 0.5)):
            worlds = [space.to_world((y + sign * index[0], x + sign * index[1])) for sign in (-1, 1)]
            ends = [to_degrees.transform(world[0], world[1]) for world in worlds]
            sides.append(float(_WGS84.inv(*ends[0], *ends[1])[2]))
    except (CRSError, ProjError, ValueError):
        return None
    return tuple(sides) if all(math.isfinite(side) and side > 0 for side in sides) else None


def _sides(sides: Sequence[float]) -> str:
    """Return sides in array order as people write them: x first, once where all are equal."""
    shown = [f"{side:.3g}" for side in reversed(sides)]
    return shown[0] if len(set(shown)) == 1 else " x ".join(shown)
