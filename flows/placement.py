"""Whether two images lie in the same place, as one to be compared with or learned from another must."""

from __future__ import annotations

import numpy as np

from tiling import InputError, Space


def check_same_place(name: str, space: Space, other_name: str, other: Space, near: float) -> None:
    """Refuses two images that do not lie pixel on pixel.

    Args:
        near: of a pixel or voxel, by which rounding may have moved one.

    Raises:
        InputError: where they differ in shape, in CRS where both have one, or by more than rounding in their place.
    """
    if space.shape != other.shape:
        raise InputError(f"{name} has shape {space.shape} and {other_name} {other.shape}; crop one to the other")
    if space.crs and other.crs and space.crs != other.crs:
        from rasterio.crs import CRS

        mine, theirs = CRS.from_wkt(space.crs), CRS.from_wkt(other.crs)
        if mine != theirs:
            raise InputError(
                f"{name} and {other_name} have different CRS, {mine.to_string()} and {theirs.to_string()}; "
                "warp one onto the other"
            )
    far = _apart(space, other)
    if not far <= near:
        what = "pixels" if space.ndim == 2 else "voxels"
        raise InputError(
            f"{name} and {other_name} lie at different places, {far:.3g} {what} apart; warp one onto the other"
        )


def _apart(space: Space, other: Space) -> float:
    """How far the same corner lies from itself in the other, in elements, where that is most."""
    corners = np.stack(np.meshgrid(*[(0, n) for n in space.shape[::-1]], indexing="ij")).reshape(space.ndim, -1)
    a, b = np.array(space.affine), np.array(other.affine)
    world = (a - b)[:, :-1] @ corners + (a - b)[:, -1:]
    return float(np.abs(np.linalg.solve(b[:, :-1], world)).max())
