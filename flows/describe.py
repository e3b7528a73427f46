"""Facts about images and models, for people."""

from __future__ import annotations

import math
from typing import Any

from lmseg_core import bundled
from lmseg_core.description import NetworkFields, read_description
from tiling.sources import Source
from tiling.sources.raster import RasterSource


def describe(image: Source) -> dict[str, Any]:
    """What an image is, where it lies and what would be read, from its header alone."""
    space = image.space
    low, high = space.bounds()
    facts: dict[str, Any] = {
        "image": image.uri,
        "kind": "raster" if space.ndim == 2 else "volume",
        "size": " x ".join(str(n) for n in space.shape[::-1]) + (" (x, y)" if space.ndim == 2 else " (x, y, z)"),
        "type": str(image.dtype),
    }
    if len(image.parts) > 1:
        facts["files"] = ", ".join(
            f"{part.file} ({'missing' if part.missing else part.channels})" for part in image.parts
        )
    if isinstance(image, RasterSource):
        named = [f"{i} {name}".strip() for i, name in enumerate(image.names, 1)]
        facts["bands"] = ", ".join(named)
        facts["nodata"] = "none" if all(n is None for n in image.nodata) else ", ".join(map(str, image.nodata))
        facts["crs"] = _crs_name(space.crs)
        facts["pixel"] = " x ".join(f"{s:.6g}" for s in space.spacing[::-1])
        facts["west, south"] = ", ".join(f"{v:.10g}" for v in low)
        facts["east, north"] = ", ".join(f"{v:.10g}" for v in high)
    else:
        facts["voxel (mm)"] = " x ".join(f"{s:.6g}" for s in space.spacing[::-1])
        facts["orientation"] = _orientation(space.affine)
        facts["lowest (mm)"] = ", ".join(f"{v:.6g}" for v in low)
        facts["highest (mm)"] = ", ".join(f"{v:.6g}" for v in high)
    n_bytes = math.prod(space.shape) * image.channels * image.dtype.itemsize
    facts["to read"] = f"{n_bytes / 2**20:.1f} MiB uncompressed"
    return facts


def describe_models() -> list[dict[str, Any]]:
    """Name, kind, bands, classes and size of each bundled model, read without torch."""
    rows = []
    for name in bundled.names():
        folder = bundled.folder(name)
        network = read_description(folder).network
        rows.append(
            {
                "name": name,
                "for": "2D rasters" if network.ndim == 2 else "3D volumes",
                "bands": ", ".join(network.bands or ()),
                "classes": ", ".join(network.id2label.values()),
                "tile": " x ".join(map(str, network.tile or ())),
                "pixels": _pixels(network),
                "size": f"{(folder / bundled.WEIGHTS).stat().st_size / 2**20:.1f} MiB",
                "card": str(folder / "README.md"),
            }
        )
    return rows


def _pixels(network: NetworkFields) -> str:
    if network.tested_range is None:
        return "unknown"
    low, high = network.tested_range
    if network.resolution is not None:
        return f"{network.resolution:g} m (tested from {network.resolution * low:g} to {network.resolution * high:g} m)"
    size = " x ".join(f"{side:g}" for side in reversed(network.spacing or ()))
    return f"{size} mm (tested from {low:g} to {high:g} times that)"


def _crs_name(wkt: str) -> str:
    if not wkt:
        return "none"
    from rasterio.crs import CRS

    crs = CRS.from_wkt(wkt)
    return crs.to_string() if crs.to_epsg() else wkt.split('"')[1]


def _orientation(affine: tuple[tuple[float, ...], ...]) -> str:
    import numpy as np
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(np.array([*affine, (0, 0, 0, 1)])))
