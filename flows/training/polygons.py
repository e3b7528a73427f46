"""Polygons of a vector file as labels on an image's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling import Box, InputError, Source
from tiling.space import Space

IGNORE = 255
_ENDINGS = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet")
_AREAS = ("Polygon", "MultiPolygon")


def is_vector(name: str) -> bool:
    """Whether a name is a vector file's."""
    return name.lower().endswith(_ENDINGS)


@dataclass(frozen=True)
class PolygonLabels:
    """Classes burnt in where they are read; 255 where no polygon lies, as nothing is known there.

    shapes: (well-known bytes in the image's CRS, class); later ones lie above earlier ones.
    """

    space: Space
    shapes: tuple[tuple[bytes, int], ...]

    @classmethod
    def open(
        cls, path: str, image: Source, attribute: str | None, names: Sequence[str], values: Mapping[int, int]
    ) -> PolygonLabels:
        """The polygons of a file, moved into the image's CRS.

        Args:
            attribute: holds each polygon's class, as a name of `names` or as a number.
            values: class of a number, where it is another.

        Raises:
            InputError: where the file cannot be read, lacks the attribute, names an unknown class, holds something
                else than polygons, or none that lies on the image.
        """
        if image.space.ndim != 2:
            raise InputError(f"{path} holds polygons, and {image.uri} is a volume; give a label volume")
        if attribute is None:
            raise InputError(f"{path} holds polygons; name the attribute with their class as attribute: in data")
        meta, geometries, fields = _read(path)
        known = list(meta["fields"])
        if attribute not in known:
            raise InputError(f"{path} has no attribute {attribute!r}; it has {', '.join(known) or 'none'}")
        classes = [_class_of(path, value, names, values) for value in fields[known.index(attribute)]]
        shapes = _placed(path, image, meta["crs"], geometries)
        pairs = [(shape, value) for shape, value in zip(shapes, classes, strict=True) if shape is not None]
        labels = cls(image.space, tuple(pairs))
        if not labels.touching(Box.whole(image.space.shape)).any():
            raise InputError(f"{path} has no polygon that lies on {image.uri}; check its CRS, or take the pair out")
        return labels

    @property
    def shape(self) -> tuple[int, ...]:
        return self.space.shape

    def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """The classes of a box, uint8; a pixel is a polygon's where its centre lies inside."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine
        from shapely import from_wkb

        wanted = Box(tuple(s.start for s in box), tuple(s.stop for s in box))
        here = np.flatnonzero(self.touching(wanted))
        if not here.size:
            return np.full(wanted.shape, IGNORE, np.uint8)
        rows = self.space.crop(wanted).affine
        return np.asarray(
            rasterize(
                [(from_wkb(shape), value) for shape, value in (self.shapes[i] for i in here)],
                out_shape=wanted.shape,
                fill=IGNORE,
                transform=Affine(*rows[0], *rows[1]),
                dtype=np.uint8,
            )
        )

    def touching(self, box: Box) -> NDArray[np.bool_]:
        """Which shapes may touch a box: those whose bounds do."""
        rows = np.array(self.space.crop(box).affine)
        height, width = box.shape
        corners = rows @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])  # (2, 4) world
        low, high = corners.min(axis=1), corners.max(axis=1)
        bounds = self._bounds
        touching: NDArray[np.bool_] = ((bounds[:, :2] <= high) & (bounds[:, 2:] >= low)).all(axis=1)
        return touching

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """West, south, east, north of every shape, (n, 4)."""
        from shapely import bounds, from_wkb

        found: NDArray[np.float64] = np.reshape([bounds(from_wkb(shape)) for shape, _ in self.shapes], (-1, 4))
        return found


def _read(path: str) -> tuple[dict[str, Any], list[bytes | None], list[Any]]:
    try:
        import pyogrio
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
    except ImportError:
        raise InputError(f"{path} needs pyogrio to be read; pip install 'lmseg[train]'") from None
    try:
        meta, _, geometries, fields = pyogrio.raw.read(path)
    except (DataSourceError, DataLayerError, FeatureError) as error:
        raise InputError(f"{path} cannot be read: {error}; give a GeoPackage, GeoJSON or shapefile") from None
    if geometries is None or not len(geometries):
        raise InputError(f"{path} holds no polygon; draw some, or give another file")
    return meta, list(geometries), list(fields)


def _placed(path: str, image: Source, crs: str | None, geometries: Sequence[bytes | None]) -> list[bytes | None]:
    """Every geometry in the image's CRS; None where a feature has none."""
    from rasterio.crs import CRS
    from rasterio.warp import transform_geom
    from shapely import from_wkb, to_wkb
    from shapely.geometry import mapping, shape

    if bool(crs) != bool(image.space.crs):
        bare = image.uri if crs else path
        raise InputError(f"{bare} has no CRS, and {path if crs else image.uri} has one; give it the one that it is in")
    there, here = (CRS.from_user_input(crs), CRS.from_wkt(image.space.crs)) if crs else (None, None)
    placed: list[bytes | None] = []
    for number, geometry in enumerate(geometries, 1):
        found = None if geometry is None else from_wkb(geometry)
        if found is None or found.is_empty:
            placed.append(None)
            continue
        if found.geom_type not in _AREAS:
            raise InputError(f"{path} has a {found.geom_type} as feature {number}; give polygons")
        if there != here:
            found = shape(transform_geom(there, here, mapping(found)))
        placed.append(to_wkb(found))
    return placed


def _class_of(path: str, value: Any, names: Sequence[str], values: Mapping[int, int]) -> int:
    if isinstance(value, str) and value in names:
        return names.index(value)
    try:
        number = int(value)
        if number != float(value):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{path} has the class {value!r}, which is not in model.classes: {', '.join(names)}") from None
    number = values.get(number, number)
    if not 0 <= number < len(names) and number != IGNORE:
        raise InputError(f"{path} has the class {number}; model.classes has 0 to {len(names) - 1}")
    return number
