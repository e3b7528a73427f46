"""Polygons of a vector file as labels on an image's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling import Box, InputError
from tiling.space import Space

IGNORE = 255
_ENDINGS = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet")


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
    def open(cls, path: str, space: Space, attribute: str | None, names: tuple[str, ...]) -> PolygonLabels:
        """The polygons of a file, moved into the image's CRS.

        Args:
            attribute: holds each polygon's class, as a name of `names` or as a number.

        Raises:
            InputError: where the file cannot be read, lacks the attribute, or names an unknown class.
        """
        try:
            import pyogrio
            from pyogrio.errors import DataSourceError
        except ImportError:
            raise InputError(f"{path} needs pyogrio to be read; pip install 'lmseg[train]'") from None
        from rasterio.crs import CRS
        from rasterio.warp import transform_geom
        from shapely import from_wkb, to_wkb
        from shapely.geometry import mapping, shape

        if attribute is None:
            raise InputError(f"{path} holds polygons; name the attribute with their class as attribute: in data")
        try:
            meta, _, geometries, fields = pyogrio.raw.read(path)
        except DataSourceError as error:
            raise InputError(f"{path} cannot be read: {error}; give a GeoPackage, GeoJSON or shapefile") from None
        known = list(meta["fields"])
        if attribute not in known:
            raise InputError(f"{path} has no attribute {attribute!r}; it has {', '.join(known)}")
        values = [_class_of(path, value, names) for value in fields[known.index(attribute)]]
        shapes = [from_wkb(geometry) for geometry in geometries]
        if meta["crs"] and space.crs:
            there, here = CRS.from_user_input(meta["crs"]), CRS.from_wkt(space.crs)
            if there != here:
                shapes = [shape(transform_geom(there, here, mapping(s))) for s in shapes]
        return cls(space, tuple((to_wkb(s), value) for s, value in zip(shapes, values, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.space.shape

    def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """The classes of a box, uint8; a pixel is a polygon's where its centre lies inside."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine
        from shapely import from_wkb

        wanted = Box(tuple(s.start for s in box), tuple(s.stop for s in box))
        rows = self.space.crop(wanted).affine
        if not self.shapes:
            return np.full(wanted.shape, IGNORE, np.uint8)
        return np.asarray(
            rasterize(
                [(from_wkb(shape), value) for shape, value in self.shapes],
                out_shape=wanted.shape,
                fill=IGNORE,
                transform=Affine(*rows[0], *rows[1]),
                dtype=np.uint8,
            )
        )


def _class_of(path: str, value: Any, names: tuple[str, ...]) -> int:
    if isinstance(value, str) and value in names:
        return names.index(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise InputError(f"{path} has the class {value!r}, which is not in model.classes: {', '.join(names)}") from None
    if not 0 <= number < len(names):
        raise InputError(f"{path} has the class {number}; model.classes has 0 to {len(names) - 1}")
    return number
