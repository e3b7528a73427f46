"""Files as others write them, for sources to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import rasterio
from rasterio.transform import Affine

UTM = "EPSG:32633"
NORTH_UP = Affine(10.0, 0.0, 499980.0, 0.0, -10.0, 5300040.0)
TRANSFORMS = {
    "north-up": NORTH_UP,
    "unround": Affine(0.1 + 1e-13, 0.0, 1 / 3, 0.0, -0.1, -2 / 7),
    "south-up": Affine(10.0, 0.0, 499980.0, 0.0, 10.0, 5200000.0),
    "rotated": Affine.translation(499980.1, 5300040.7) @ Affine.rotation(33.3) @ Affine.scale(10.1, -9.9),
    "sheared": Affine.translation(499980.1, 5300040.7) @ Affine.shear(12.5, -7.0) @ Affine.scale(10.1, -9.9),
}


def write_tiff(path: Path, values: np.ndarray, mask: np.ndarray | None = None, **options: Any) -> Path:
    """A GeoTIFF of (C, y, x) values, in UTM unless told otherwise."""
    profile = {
        "driver": "GTiff",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": UTM,
        "transform": NORTH_UP,
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **(profile | options)) as image:
        image.write(values)
        if mask is not None:
            image.write_mask(mask)
    return path


def rotation(degrees: float, axis: tuple[float, float, float] = (0.3, -0.5, 0.81)) -> np.ndarray:
    """A 3 x 3 turn around `axis` (Rodrigues)."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def affine_of(axes: np.ndarray, spacing: tuple[float, ...] = (0.8, 1.1, 2.5)) -> np.ndarray:
    """4 x 4 affine of a volume whose index steps point along `axes`' columns, starting off the origin."""
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing)
    affine[:3, 3] = (-31.25, 17.5, 42.125)
    return affine


AFFINES = {
    "RAS": affine_of(np.eye(3)),
    "LPS": affine_of(np.diag([-1.0, -1, 1])),
    "LAS": affine_of(np.diag([-1.0, 1, 1])),
    "permuted": affine_of(np.array([[0, 0, -1.0], [1, 0, 0], [0, 1, 0]])),
    "oblique": affine_of(rotation(23.0)),
    "oblique, mirrored": affine_of(rotation(-17.0) @ np.diag([-1.0, 1, 1])),
}


def write_volume(
    path: Path,
    values: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    forms: str = "both",
    units: str | int = "mm",
    big_endian: bool = False,
) -> Path:
    """A NIfTI-1 file of (x, y, z) values, placed by `both` forms, `sform` or `qform` only, or `neither`."""
    header = nibabel.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_shape(values.shape)
    header.set_data_dtype(values.dtype)
    affine = AFFINES["RAS"] if affine is None else affine
    header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * (values.ndim - 3)))
    image = nibabel.Nifti1Image(values, None, header)
    image.header.set_qform(affine, code=1 if forms in ("both", "qform") else 0)
    image.header.set_sform(affine, code=2 if forms in ("both", "sform") else 0)
    if forms == "sform":
        image.header.set_qform(np.eye(4), code=0)
        image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    if forms == "neither":
        image.header.set_sform(None, code=0)
    image.header.set_xyzt_units(units)
    image.header["descrip"] = b"MUSTERMANN^ERIKA 1964-08-12"
    nibabel.save(nibabel.Nifti1Image(values, None, image.header), path)
    return path
