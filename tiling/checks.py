"""Whether a finished run is what it says."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from tiling.address import Address, address_of
from tiling.box import Box
from tiling.damage import damaged, described
from tiling.errors import InputError
from tiling.extras import require
from tiling.lease import holder
from tiling.place import place_of
from tiling.sources import Source
from tiling.sources.raster import GDAL_ENV
from tiling.store import Store

_SIDE = {2: 512, 3: 64}
_PLACES = 16


@dataclass(frozen=True, slots=True)
class Check:
    """One question about a run, its answer, and what was seen."""

    name: str
    passed: bool
    detail: str


def verify(store: Store, source: Source | None, files: Iterable[str | Address] = ()) -> list[Check]:
    """Asks whether every block is done and as it was written, and the source and the exports lie where they should.

    Says, too, where somebody else's run is under way on the store. Changes nothing.

    Args:
        source: what the run was made from; None where it is gone.
        files: exported label maps, `.tif` or `.nii[.gz]`.
    """
    checks = [_complete(store), _intact(store), _geometry(store, source)]
    checks += [_export(store, address_of(file)) for file in files]
    if (other := holder(store.path)) is not None:
        checks.insert(0, Check("under way", True, f"{other} writes this store; blocks may still be missing"))
    return checks


def _complete(store: Store) -> Check:
    pending = store.pending()
    done = store.grid.n_blocks - len(pending)
    first = f"; the first missing one is {pending[0]}" if pending else ""
    return Check("complete", not pending, f"{done} of {store.grid.n_blocks} blocks done{first}")


def _intact(store: Store) -> Check:
    found = list(damaged(store))
    good = "every block that is done equals its checksums"
    return Check("intact", not found, described(found) if found else good)


def _geometry(store: Store, source: Source | None) -> Check:
    if source is None:
        return Check("source geometry", False, f"{store.uri} is gone; put it back to compare")
    same = source.space == store.space
    detail = f"shape, affine and CRS equal those of {source.uri}" if same else f"{source.uri} lies elsewhere now"
    return Check("source geometry", same, detail)


def _export(store: Store, file: Address) -> Check:
    with place_of(file).fetched() as here:
        problem = difference(store, here)
    detail = f"geometry exact, labels equal the store's in {_PLACES} places"
    return Check(f"export {file.name}", problem is None, problem or detail)


def difference(store: Store, file: Path) -> str | None:
    """What an exported label map has other than its store, in words; None where geometry and labels are equal."""
    try:
        return _raster_problem(store, file) if store.space.ndim == 2 else _volume_problem(store, file)
    except ConnectionError:
        raise
    except (RasterioError, OSError, EOFError, zlib.error) as error:
        return f"cannot be read: {error}"
    except InputError as error:  # the store's own
        return f"cannot be compared: {error}"


def _raster_problem(store: Store, file: Path) -> str | None:
    space = store.out_space
    with rasterio.Env(**GDAL_ENV), rasterio.open(file) as image:
        (a, b, c), (d, e, f) = space.affine
        if image.shape != space.shape or image.transform[:6] != (a, b, c, d, e, f):
            return f"lies at {image.transform[:6]} with shape {image.shape}, not at {(a, b, c, d, e, f)} {space.shape}"
        if (image.crs.to_wkt() if image.crs else "") != space.crs:
            return "has another CRS than the source"
        for box in _places(space.shape):
            (y, x), (height, width) = box.start, box.shape
            if problem := _wrong_labels(store, box, image.read(1, window=((y, y + height), (x, x + width)))):
                return problem
    return None


def _volume_problem(store: Store, file: Path) -> str | None:
    require("volumes", "NIfTI volumes")
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    from tiling.sources.volume import millimetres

    space = store.out_space
    try:
        image: Any = nibabel.load(file)
    except ImageFileError as error:
        return f"cannot be read: {error}"
    if image.shape != space.shape[::-1]:
        return f"has shape {image.shape}, not {space.shape[::-1]}"
    # Where two forms of the source disagree both are copied, and one of them was chosen.
    forms = [f for f, code in (g(coded=True) for g in (image.header.get_sform, image.header.get_qform)) if code]
    placements = [millimetres(image.header) * form[:3] for form in forms or [image.affine]]
    # NIfTI keeps its placement in float32.
    if not any(np.allclose(p, np.array(space.affine), rtol=1e-6, atol=1e-4) for p in placements):
        return f"lies at {image.affine[:3].tolist()}, not at {space.affine}"
    for box in _places(space.shape):
        (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
        if problem := _wrong_labels(store, box, np.asarray(image.dataobj[x0:x1, y0:y1, z0:z1]).T):
            return problem
    return None


def _places(shape: tuple[int, ...]) -> list[Box]:
    """Windows spread evenly over the image, its first and last corner among them."""
    cells = list(Box.whole(shape).split((_SIDE[len(shape)],) * len(shape)))
    return [cells[round(i)] for i in np.linspace(0, len(cells) - 1, min(_PLACES, len(cells)))]


def _wrong_labels(store: Store, box: Box, labels: NDArray[Any]) -> str | None:
    wrong = int(np.count_nonzero(labels != store.read(box)))
    return f"{wrong} labels at {box.start}..{box.stop} differ from the store's" if wrong else None
