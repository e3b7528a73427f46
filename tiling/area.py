"""The part of an image that is asked for."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.box import Box
from tiling.errors import InputError
from tiling.space import Space

_CELL = 1024


@dataclass(frozen=True, slots=True)
class Area:
    """A box of the image, and polygons inside it where only they are wanted.

    Attributes:
        box: in image indices.
        shapes: GeoJSON geometries in the image's CRS, as text; empty if the whole box is wanted.
    """

    box: Box
    shapes: tuple[str, ...] = ()

    def mask(self, space: Space, box: Box) -> NDArray[np.bool_] | None:
        """Which pixels of `box` are wanted; None if all are. `space` is the whole image's."""
        if not self.shapes:
            return None
        from rasterio.features import geometry_mask
        from rasterio.transform import Affine

        shapes = [json.loads(s) for s in self.shapes]
        wanted = np.zeros(box.shape, bool)
        # Burnt in cells fixed by the image: the rasteriser's rounding may not depend on the block.
        origin = tuple(s - s % _CELL for s in box.start)
        for cell in Box(origin, box.stop).split((_CELL,) * 2):
            whole = Box(cell.start, tuple(a + _CELL for a in cell.start))
            rows = space.crop(whole).affine
            part = whole & box
            wanted[part.relative(box.start).slices] = geometry_mask(
                shapes, whole.shape, Affine(*rows[0], *rows[1]), invert=True
            )[part.relative(whole.start).slices]
        return wanted

    def to_json(self) -> dict[str, Any]:
        return {"start": list(self.box.start), "stop": list(self.box.stop), "shapes": list(self.shapes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Area:
        return cls(Box(tuple(data["start"]), tuple(data["stop"])), tuple(data["shapes"]))


def area_of_bounds(space: Space, bounds: Sequence[float], crs: str | None = None) -> Area:
    """A raster's part inside west, south, east, north.

    Args:
        crs: of the bounds, such as `EPSG:4326`; the image's own by default.

    Raises:
        InputError: where the bounds are not in order or miss the image.
    """
    west, south, east, north = bounds
    if not (west < east and south < north) or not all(map(math.isfinite, bounds)):
        raise InputError(
            f"the bounding box {tuple(bounds)} is empty; give west south east north, west < east, south < north"
        )
    ring = _densified([(west, south), (east, south), (east, north), (west, north), (west, south)])
    if crs is not None:
        ring = _transformed([ring], crs, space)[0]
    return Area(space.box_around(np.array(ring)))


def area_of_geojson(space: Space, source: str) -> Area:
    """A raster's part inside polygons.

    Args:
        source: a GeoJSON file or its text; in EPSG:4326 unless it has the older `crs` member.

    Raises:
        InputError: where it is no GeoJSON, holds no polygon, or misses the image.
    """
    text = source if source.lstrip().startswith("{") else _file_text(source)
    name = "the area of interest" if text is source else source
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not GeoJSON: {error}; give polygons as GeoJSON") from error
    polygons = [g for g in _geometries(data) if g.get("type") in ("Polygon", "MultiPolygon")]
    if not polygons:
        raise InputError(f"{name} holds no polygon; give a Polygon or MultiPolygon")
    crs = _crs(data, name)
    shapes = []
    for polygon in polygons:
        parts = [polygon["coordinates"]] if polygon["type"] == "Polygon" else polygon["coordinates"]
        try:
            dense = [[_densified(ring) for ring in rings] for rings in parts]
            if not dense or not all(dense):
                raise ValueError("it has no rings")
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{name} has a polygon of no use: {error}; give rings of three or more (x, y)") from error
        shapes.append({"type": "MultiPolygon", "coordinates": [_transformed(rings, crs, space) for rings in dense]})
    points = np.array([p for s in shapes for rings in s["coordinates"] for ring in rings for p in ring])
    return Area(space.box_around(points), tuple(json.dumps(s) for s in shapes))


def area_of_box(space: Space, box: Sequence[float]) -> Area:
    """A volume's part inside a box of world millimetres (RAS+): x0, y0, z0, x1, y1, z1, in either order.

    Raises:
        InputError: where the box is empty or misses the volume.
    """
    low, high = np.minimum(box[:3], box[3:]), np.maximum(box[:3], box[3:])
    if not np.all(low < high) or not np.isfinite(box).all():
        raise InputError(f"the box {tuple(box)} is empty; give x0 y0 z0 x1 y1 z1 in millimetres")
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
    return Area(space.box_around(corners))


def _file_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as the area of interest: {error}; give a GeoJSON file") from error


def _geometries(data: Any) -> list[dict[str, Any]]:
    match data:
        case {"type": "FeatureCollection", "features": [*features]}:
            return [g for f in features for g in _geometries(f)]
        case {"type": "Feature", "geometry": geometry}:
            return _geometries(geometry)
        case {"type": "GeometryCollection", "geometries": [*geometries]}:
            return [g for part in geometries for g in _geometries(part)]
        case {"type": str(), "coordinates": _}:
            return [data]
        case _:
            return []


def _crs(data: Any, name: str) -> str:
    """The CRS of GeoJSON: longitude and latitude unless it has the member that RFC 7946 dropped."""
    match data:
        case {"crs": {"properties": {"name": str(crs)}}}:
            return crs
        case {"crs": value} if value is not None:
            raise InputError(f"{name} has a crs {value!r} that names none; leave it out and give EPSG:4326")
        case _:
            return "EPSG:4326"


def _densified(ring: Sequence[Sequence[float]], parts: int = 16) -> list[tuple[float, float]]:
    """More points an edge: a straight line in one CRS is a curve in another.

    Raises:
        ValueError, TypeError: where this is no ring of points.
    """
    points = np.array([p[:2] for p in ring], dtype=float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("a ring has too few points, or numbers that are not finite")
    steps = np.linspace(0, 1, parts, endpoint=False)[:, None]
    dense = [a + (b - a) * steps for a, b in itertools.pairwise(points)]
    return [(float(x), float(y)) for x, y in np.concatenate([*dense, points[-1:]])]


def _transformed(rings: list[list[tuple[float, float]]], crs: str, space: Space) -> list[list[tuple[float, float]]]:
    from rasterio._err import CPLE_BaseError  # not in rasterio.errors, but transform lets it out
    from rasterio.crs import CRS
    from rasterio.errors import CRSError, RasterioError
    from rasterio.warp import transform

    if not space.crs:
        raise InputError(f"the image has no CRS, so an area in {crs} cannot be placed; give it in image coordinates")
    try:
        there = CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(f"the area's CRS {crs!r} cannot be used: {error}; write it as EPSG:4326") from error
    moved = []
    for ring in rings:
        try:
            xs, ys = transform(there, CRS.from_wkt(space.crs), *map(list, zip(*ring, strict=True)))
        except (RasterioError, CPLE_BaseError):
            xs = ys = [math.inf]
        if not np.isfinite([xs, ys]).all():
            raise InputError(f"the area in {crs} reaches where the image's CRS has no coordinates; give a smaller one")
        moved.append(list(zip(xs, ys, strict=True)))
    return moved
