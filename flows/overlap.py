"""The overlap that an image needs for its seams to stay small."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from flows.binding import bind_model
from flows.parameters import Parameters
from flows.seams import PLACES, ReceptiveField, columns, look, shown_share
from flows.stages import area_of, open_image, tile_of
from tiling import Area, Grid, InputError, Predict, SeamFigures, Source, sample_places, seam_figures
from tiling.seams import tile_borders

# What `plan` tries, as shares of a tile.
OVERLAPS = (0, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
_USUAL = 0.25
_MOST = 0.5  # of the pixels
_FEW = 4  # a part of the places shows already that an overlap is hopeless: one in so many


@dataclass(frozen=True)
class OverlapFigures:
    """What an overlap leaves of the seams of an image.

    Attributes:
        figures: None where the image has no tile borders.
        tiles: how many tiles there are, in those of an overlap of 0.25.
    """

    overlap: float
    figures: SeamFigures | None
    tiles: float

    def is_under(self, bound: float) -> bool:
        """Whether no more than this share of pixels changes, by the upper end of the interval."""
        return self.figures is None or self.figures.changed.high < bound


@dataclass(frozen=True)
class SeamPlan:
    """Overlaps that were tried, rising, the last one with what the network sees of it.

    Attributes:
        bound: share of pixels that may change.
    """

    source: str
    bound: float
    tried: tuple[OverlapFigures, ...]
    field: ReceptiveField

    @property
    def overlap(self) -> float | None:
        """The smallest one that suffices."""
        return next((t.overlap for t in self.tried if t.is_under(self.bound)), None)

    def facts(self) -> dict[str, Any]:
        """For people, beside those of the plan."""
        return {"overlap for seams": self.overlap, **self.field.facts()}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"bound": self.bound, "tried": [asdict(t) for t in self.tried], "receptive_field": self.field.to_json()}

    def table(self) -> str:
        """A line for each overlap that was tried, for a terminal."""
        rows = [["overlap", "changed [95 %]", "tiles"]]
        for tried in self.tried:
            share = "no borders" if tried.figures is None else shown_share(tried.figures.changed)
            rows.append([f"{tried.overlap:g}", share, f"{tried.tiles:.2f}"])
        return columns(rows)

    def refuse(self) -> None:
        """Ends where no overlap suffices.

        Raises:
            InputError: naming the best one.
        """
        if self.overlap is not None:
            return
        shares = [(t.figures.changed, t.overlap) for t in self.tried if t.figures is not None]
        best, overlap = min(shares, key=lambda pair: pair[0].high)
        raise InputError(
            f"{self.source} has no overlap up to {OVERLAPS[-1]:g} that changes less than {100 * self.bound:g}% of "
            f"pixels; the best is --overlap {overlap:g} with {shown_share(best)}"
        )


def plan_overlap(source: str, parameters: Parameters, bound: float) -> SeamPlan:
    """Tries overlaps from none to a half on a sample of an image's tile borders, until one leaves few enough seams.

    Args:
        bound: share of pixels near borders that may change.

    Raises:
        InputError, ModelError: where the image or the model cannot be used, or the borders have no data.
    """
    image = open_image(source, parameters)
    area = area_of(image, parameters)
    predict = bind_model(image, area, parameters).predict
    tile = tile_of(image, predict, parameters)

    def grid_of(overlap: float) -> Grid:
        # One block: where blocks meet the answer is the same, and such places would only thin out the others.
        return Grid.regular(image.space.shape, tile, overlap, None, area.box)

    tried: list[OverlapFigures] = []
    for overlap in OVERLAPS:
        grid = grid_of(overlap)
        figures = _figures_of(image, grid, predict, area, bound)
        tried.append(OverlapFigures(overlap, figures, grid.n_tiles / grid_of(_USUAL).n_tiles))
        if tried[-1].is_under(bound):
            break
    return SeamPlan(source, bound, tuple(tried), ReceptiveField.of(predict, grid))


def parse_share(text: str) -> float:
    """The share in a text such as `0.1%`.

    Raises:
        InputError: where it is no percentage, or none from above 0 to 50.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= _MOST:
        raise InputError(f"--seams {text!r} is no share of pixels above 0% and up to 50%; write it as 0.1%")
    return share


def _figures_of(image: Source, grid: Grid, predict: Predict, area: Area, bound: float) -> SeamFigures | None:
    places = sample_places(image, grid, area, PLACES)
    if not places and any(map(tile_borders, grid.axes)):
        raise InputError(f"{image.uri} has no data where its tiles meet; choose a part that has")
    # Kinds of places take turns, so the first ones are a sample too.
    first = len(places) // _FEW
    seams = look(image, grid, predict, area, places[:first])
    figures = seam_figures(seams)
    if figures is not None and figures.changed.low > bound:
        return figures
    return seam_figures([*seams, *look(image, grid, predict, area, places[first:])])
