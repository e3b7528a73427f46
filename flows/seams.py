"""The seam certificate of a run: how many labels on tile and block borders another tile would change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from flows.binding import bind_model
from flows.exports import REPORT, SEAMS, beside
from flows.parameters import Parameters, RegionParameters, VolumeParameters
from flows.stages import open_image
from tiling import (
    Area,
    Box,
    Check,
    Grid,
    InputError,
    Interval,
    Oriented,
    Place,
    Predict,
    Seam,
    SeamFigures,
    Source,
    Space,
    Store,
    compare_place,
    sample_places,
    seam_figures,
)
from tiling.address import Address, address_of
from tiling.ownership import Owner
from tiling.place import place_of
from tiling.predict import ras_order

if TYPE_CHECKING:
    from lmseg_core import Locality, Predictor

# A third of them of each kind. More narrow the interval with their root, at a tile or five each.
PLACES = 48


@dataclass(frozen=True)
class ReceptiveField:
    """How far a network looks in an image's tiles, and how far an overlap lets it.

    Attributes:
        locality: in the image's order of axes.
        half: pixels of half the overlap, an axis each; None where one tile spans the axis.
    """

    locality: Locality
    tile: tuple[int, ...]
    half: tuple[float | None, ...]

    @classmethod
    def of(cls, predict: Predict, grid: Grid) -> ReceptiveField:
        """Probes the model's network in the grid's tiles."""
        from lmseg_core import Locality, locality_of

        order = ras_order(predict.affine)[0] if isinstance(predict, Oriented) else tuple(range(len(grid.axes)))
        turned = locality_of(_model_of(predict), [grid.tile[axis] for axis in order])
        place = [order.index(axis) for axis in range(len(order))]
        extent, radius = (tuple(sides[i] for i in place) for sides in (turned.extent, turned.radius))
        half = tuple(o / 2 if a.tiles > 1 else None for a, o in zip(grid.axes, grid.overlap, strict=True))
        return cls(Locality(extent, radius, turned.everywhere), grid.tile, half)

    @property
    def is_covered(self) -> bool:
        """Whether half the overlap is as wide as the radius, on every axis that is cut."""
        return all(h is None or h >= r for h, r in zip(self.half, self.locality.radius, strict=True))

    def facts(self) -> dict[str, str]:
        """For people: what it is, and what looks further."""
        found = self.locality
        whole_tile = any(e >= t // 2 for e, t in zip(found.extent, self.tile, strict=True))
        extent = "all of it further than a tile" if whole_tile else f"all of it within {_by(found.extent)}"
        half = _by(["-" if h is None else f"{h:g}" for h in self.half])
        return {
            "receptive field": f"99 % within {_by(found.radius)} pixels, {extent}; half the overlap, {half}, "
            f"{'covers' if self.is_covered else 'does not cover'} the 99 %",
            "layers that look everywhere": ", ".join(found.everywhere) or "none",
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self.locality), "half_overlap": self.half, "covered": self.is_covered}


@dataclass(frozen=True)
class Certificate:
    """What was seen on the borders of a run.

    Attributes:
        check: whether the store's labels are what its model answers.
        figures: of `tile borders`, `block borders` and `all`; None where there are no such places.
        layer: the map of the places.
    """

    check: Check
    figures: dict[str, SeamFigures | None]
    field: ReceptiveField
    layer: Address

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = {name: None if f is None else asdict(f) for name, f in self.figures.items()}
        return {**figures, "receptive_field": self.field.to_json(), "layer": str(self.layer)}

    def table(self) -> str:
        """A line for each kind of border, for a terminal."""
        rows = [["", "places", "pixels", "changed [95 %]", "largest", "typical difference of score [95 %]"]]
        for name, f in self.figures.items():
            told = ["0", "0", "-", "-", "-"]
            if f is not None:
                typical = f"{f.typical.value:.2g} [{f.typical.low:.2g}, {f.typical.high:.2g}]"
                told = [str(f.places), str(f.pixels), shown_share(f.changed), f"{f.largest:.3f}", typical]
            rows.append([name, *told])
        return columns(rows)


def certify(run: str | Address, store: Store, count: int, overwrite: bool = False) -> Certificate:
    """Looks at places on the borders of a finished run, and writes them as a map beside it.

    Args:
        overwrite: replace a map that is not what this run wrote.

    Raises:
        InputError: where the run is unfinished, its image or model is gone or another, or the map cannot be written.
        ModelError: where the model cannot be loaded.
        ConnectionError: where object storage does not answer.
    """
    if pending := len(store.pending()):
        raise InputError(f"{run} still lacks {pending} of {store.grid.n_blocks} blocks; run lmseg segment again")
    parameters = _parameters_of(beside(run, REPORT))
    owner = Owner(address_of(store.path), (store.uri, *parameters.inputs), overwrite)
    owner.check([beside(run, SEAMS[store.space.ndim])])
    image = open_image(store.uri, parameters)
    if not store.is_made_from("source", image.fingerprint):
        raise InputError(f"{store.uri} has changed since {run} was made; put the old one back, or segment it again")
    predict = bind_model(image, store.area, parameters).predict
    if not store.is_made_from("model", predict.digest):
        raise InputError(
            f"{parameters.model} is not the model that made {run}: its digest is another; "
            "put the old one back, or segment again with --fresh"
        )
    seams = look(image, store.grid, predict, store.area, sample_places(image, store.grid, store.area, count))
    field = ReceptiveField.of(predict, store.grid)
    return Certificate(_check(store, seams), _by_border(seams), field, _write_layer(store, seams, owner))


def look(image: Source, grid: Grid, predict: Predict, area: Area, places: Sequence[Place]) -> list[Seam]:
    """Compares places under a bar on standard error, where that is a terminal."""
    from lmseg_core import stride_of

    console = Console(stderr=True)
    bar = track(places, "places", console=console, transient=True, disable=not console.is_terminal)
    stride = stride_of(_model_of(predict))
    return [compare_place(image, grid, predict, area, place, stride) for place in bar]


def check_count(count: int | None) -> int:
    """The number of places that was asked for, or the usual one.

    Raises:
        InputError: where it is less than one.
    """
    if count is None:
        return PLACES
    if count < 1:
        raise InputError(f"--places {count} looks at nothing; give 1 or more, such as {PLACES}")
    return count


def shown_share(share: Interval) -> str:
    """A share of pixels with its interval."""
    return f"{share.value:.3%} [{share.low:.3%}, {share.high:.3%}]"


def _model_of(predict: Predict) -> Predictor:
    from lmseg_core import Predictor

    model = predict.model if isinstance(predict, Oriented) else predict
    assert isinstance(model, Predictor)
    return model


def _by(sides: Sequence[object]) -> str:
    return " x ".join(map(str, sides))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under each other, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _parameters_of(report: Address) -> Parameters:
    """What a run was told, from the report that it writes last."""
    try:
        content = place_of(report).read()
    except ConnectionError:
        raise
    except OSError as error:
        raise InputError(f"{report} cannot be read ({error}); run lmseg segment again to write it") from None
    if content is None:
        raise InputError(f"{report} is missing, which names the model; run lmseg segment again to write it")
    try:
        told = json.loads(content)["parameters"]
        kind = VolumeParameters if "form" in told else RegionParameters
        return kind(**told)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{report} cannot be read ({reason}); run lmseg segment again to write it") from None


def _check(store: Store, seams: Sequence[Seam]) -> Check:
    if not seams:
        return Check("seams", True, "no tile or block border has data beside it")
    origin = store.area.box.start
    wrong = [int(np.count_nonzero(s.labels != store.read(s.box.relative(origin)))) for s in seams]
    pixels = sum(s.pixels for s in seams)
    if not any(wrong):
        return Check("seams", True, f"the model gives the store's labels again, {pixels} in {len(seams)} places")
    first = seams[int(np.flatnonzero(wrong)[0])].place.index
    detail = (
        f"{sum(wrong)} labels in {np.count_nonzero(wrong)} of {len(seams)} places are not what the model gives, the "
        f"first at {first}; the figures are the model's, not the store's"
    )
    return Check("seams", False, detail)


def _by_border(seams: Sequence[Seam]) -> dict[str, SeamFigures | None]:
    return {
        "tile borders": seam_figures([s for s in seams if s.place.on_tile]),
        "block borders": seam_figures([s for s in seams if s.place.on_block]),
        "all": seam_figures(seams),
    }


def _write_layer(store: Store, seams: Sequence[Seam], owner: Owner) -> Address:
    """`_seams.geojson` with a polygon a place, or `_seams.nii.gz`: 0 not looked at, 1 equal, 2 changed."""
    layer = beside(store.path, SEAMS[store.space.ndim])
    if store.space.ndim == 2:
        text = json.dumps(_features(store.space, seams), indent=1)
        with owner.publish(layer) as folder:
            (folder / layer.name).write_text(text + "\n", encoding="utf-8")
        return layer
    from tiling.formats.nifti import write_marks

    with owner.publish(layer) as folder:
        write_marks(store, folder / layer.name, lambda box: _marks(box.shift(store.area.box.start), seams))
    return layer


def _marks(box: Box, seams: Sequence[Seam]) -> NDArray[np.uint8]:
    marks = np.zeros(box.shape, np.uint8)
    for seam in seams:
        part = box & seam.box
        if part.size:
            here = marks[part.relative(box.start).slices]
            # Where two places overlap, a change that either shows is shown.
            np.maximum(here, seam.seen[part.relative(seam.box.start).slices], out=here)
    return marks


def _features(space: Space, seams: Sequence[Seam]) -> dict[str, Any]:
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": _polygon(space, seam.box),
                "properties": {
                    "tile_border": seam.place.on_tile,
                    "block_border": seam.place.on_block,
                    "row": seam.place.index[0],
                    "column": seam.place.index[1],
                    "pixels": seam.pixels,
                    "changed": seam.changed,
                    "share": seam.changed / seam.pixels,
                    "largest": seam.largest,
                    "typical": seam.total / seam.pixels,
                },
            }
            for seam in seams
        ],
    }


def _polygon(space: Space, box: Box) -> dict[str, Any]:
    """A box in WGS 84, in the image's own coordinates where it has no CRS; rings run as RFC 7946 wants."""
    (top, left), (bottom, right) = box.start, box.stop
    corners = ((top, left), (bottom, left), (bottom, right), (top, right), (top, left))
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [[space.to_world(c) for c in corners]]}
    if space.crs:
        from rasterio._err import CPLE_BaseError  # not in rasterio.errors, but transform_geom lets it out
        from rasterio.errors import RasterioError
        from rasterio.warp import transform_geom

        try:
            geometry = transform_geom(space.crs, "OGC:CRS84", geometry, antimeridian_cutting=True)
        except (RasterioError, CPLE_BaseError) as error:
            raise InputError(f"the image's CRS cannot be turned into WGS 84 for the map of places: {error}") from error
    several = geometry["type"] == "MultiPolygon"
    parts = geometry["coordinates"] if several else [geometry["coordinates"]]
    parts = [[_anticlockwise(ring) for ring in rings] for rings in parts]
    return {"type": geometry["type"], "coordinates": parts if several else parts[0]}


def _anticlockwise(ring: Sequence[Sequence[float]]) -> list[list[float]]:
    points = [[float(x), float(y)] for x, y in ring]
    doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(points))
    return points if doubled > 0 else points[::-1]
