"""Cloud-optimised GeoTIFF."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window

from tiling.answer import SCALE
from tiling.box import Box
from tiling.classes import ClassTable
from tiling.errors import InputError
from tiling.sources.raster import GDAL_ENV, open_raster, quietly_open
from tiling.store import Store

_TILE = 512
_ROWS = 2048
# GDAL makes overviews from strips as wide as the image; of its own accord it takes them 512 rows high and more.
_OVERVIEW_ROWS = 64


def write_cog(store: Store, out: Path, name: str) -> list[Path]:
    """Writes labels, probability or uncertainty as COG; labels with palette, class names and attribute table.

    A tiled GeoTIFF is staged beside `out` and copied by GDAL's COG driver, so memory holds some rows of tiles only.

    Returns:
        `out` and, for labels, its `.aux.xml`, where GDAL and QGIS look for class names and the attribute table.
    """
    staged = out.with_name("staged.tif")
    labels = name == "labels"
    with rasterio.Env(**GDAL_ENV, GDAL_OVR_CHUNKYSIZE=_OVERVIEW_ROWS):
        with quietly_open(str(staged), "w", **_profile(store, name)) as target:
            _copy_pixels(store, name, target)
            if labels:
                # A GeoTIFF palette has 256 entries; wider label maps keep their colours in the attribute table.
                if store.classes.dtype == "uint8":
                    target.write_colormap(1, {c.value: (*c.rgb, 255) for c in store.classes} | {255: (0, 0, 0, 0)})
            else:
                names = [c.name for c in store.classes] if name == "probability" else ["normalised entropy"]
                for band, description in enumerate(names, 1):
                    target.set_band_description(band, description)
                target.scales = (1 / SCALE,) * target.count
        source = _with_classes(staged, store.classes) if labels else staged
        rasterio.shutil.copy(
            source,
            out,
            driver="COG",
            compress="DEFLATE",
            blocksize=_TILE,
            overview_resampling="MODE" if labels else "AVERAGE",
            bigtiff="IF_SAFER",
            num_threads="ALL_CPUS",
        )
    for file in out.parent.glob(f"{staged.stem}.*"):
        file.unlink()
    try:
        open_raster(str(out))
    except InputError as error:
        # GDAL keeps quiet about a disk that fills up, and leaves an image that ends too early.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    side = out.with_name(out.name + ".aux.xml")
    return [out, side] if side.exists() else [out]


def _profile(store: Store, name: str) -> dict[str, Any]:
    space = store.out_space
    array = store.array(name)
    return {
        "driver": "GTiff",
        "width": space.shape[1],
        "height": space.shape[0],
        "count": array.shape[0] if name == "probability" else 1,
        "dtype": array.dtype.name,
        "nodata": store.classes.nodata if name == "labels" else 255,
        "crs": CRS.from_wkt(space.crs) if space.crs else None,
        "transform": Affine(*space.affine[0], *space.affine[1]),
        "tiled": True,
        "blockxsize": _TILE,
        "blockysize": _TILE,
        "compress": "DEFLATE",
        "zlevel": 1,
        "bigtiff": "IF_SAFER",
        "num_threads": "ALL_CPUS",
    }


def _copy_pixels(store: Store, name: str, target: Any) -> None:
    # Pieces of whole tiles: a tile that is written twice would be compressed twice and leave a hole in the file.
    for box in Box.whole(store.out_space.shape).split((_ROWS, _ROWS)):
        (y, x), (height, width) = box.start, box.shape
        pixels = store.read(box, name)
        window = Window(x, y, width, height)
        target.write(pixels, window=window) if name == "probability" else target.write(pixels, 1, window=window)


def _with_classes(image: Path, classes: ClassTable) -> Path:
    """A VRT of `image` with class names and an attribute table, for which rasterio has no calls."""
    vrt = image.with_suffix(".vrt")
    try:
        rasterio.shutil.copy(image, vrt, driver="VRT")
    except CPLE_BaseError as error:  # which rasterio wraps elsewhere
        raise OSError(errno.EIO, " ".join(str(error).split())) from error
    text = vrt.read_text(encoding="utf-8")
    # The band's own elements come first in GDAL's schema; its source last.
    head, source = text.split("<SimpleSource>" if "<SimpleSource>" in text else "<ComplexSource>", 1)
    tag = "<SimpleSource>" if "<SimpleSource>" in text else "<ComplexSource>"
    vrt.write_text(head + _category_names(classes) + _attribute_table(classes) + tag + source, encoding="utf-8")
    return vrt


def _category_names(classes: ClassTable) -> str:
    names = {c.value: c.name for c in classes}
    rows = (f"<Category>{escape(names.get(v, ''))}</Category>" for v in range(max(names) + 1))
    return f"<CategoryNames>{''.join(rows)}</CategoryNames>"


def _attribute_table(classes: ClassTable) -> str:
    # (name, type, usage) as in GDAL's GDALRATFieldType and GDALRATFieldUsage.
    fields = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    head = "".join(
        f'<FieldDefn index="{i}"><Name>{n}</Name><Type>{t}</Type><Usage>{u}</Usage></FieldDefn>'
        for i, (n, t, u) in enumerate(fields)
    )
    rows = "".join(
        f'<Row index="{i}">' + "".join(f"<F>{escape(str(v))}</F>" for v in (c.value, c.name, *c.rgb)) + "</Row>"
        for i, c in enumerate(classes)
    )
    return f'<GDALRasterAttributeTable tableType="thematic">{head}{rows}</GDALRasterAttributeTable>'
