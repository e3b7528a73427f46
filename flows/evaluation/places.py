"""Where a prediction is worst and best: a few squares of rasters, planes of volumes, beside their truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flows.evaluation.cases import Case
from flows.evaluation.scores import Evaluation
from lmseg_core.surface import UNKNOWN
from tiling import Box, ClassTable

_PLACES = 3  # of each kind
_SQUARE = 512
_ROWS = 4  # squares, and planes of volumes, that are read together
_PLANES = 32
_SHOWN = 512  # pixels of a panel's longer side: a square as it is
_GAP, _LINE = 16, 26
_BACKGROUND = "#2b2b2b"
_BLANK = (255, 255, 255)
_RIGHT = (226, 226, 226)
_OTHER, _MISSED, _EXTRA = (213, 62, 79), (230, 145, 56), (61, 109, 204)

Color = tuple[int, int, int]
Labels = NDArray[np.uint8]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """A square or plane of a case.

    Attributes:
        wrong: share of its pixels that are wrong; in volumes, of those that either side gives a class but 0.
        varied: whether it shows enough for a good figure to mean something.
    """

    case: Case
    box: Box
    wrong: float
    varied: bool

    @property
    def caption(self) -> str:
        """Where it is, in indices, and how much of it is wrong."""
        start, stop = self.box.start, self.box.stop
        where = f"rows {start[-2]}-{stop[-2]}, columns {start[-1]}-{stop[-1]}"
        if self.box.ndim == 3:
            where = f"plane {start[0]} of {self.case.truth.space.shape[0]}"
        what = "wrong" if self.box.ndim == 2 else "of what is not class 0 wrong"
        return f"{self.case.name}, {where}: {self.wrong:.1%} {what}"


def chosen(evaluation: Evaluation, ignore: int | None) -> tuple[list[Place], list[Place]]:
    """The worst and the best places: of the only case, or one of each of the worst and best cases."""
    if len(evaluation.cases) == 1:
        places = list(_places(evaluation.cases[0].case, ignore))
        worst = sorted(places, key=lambda p: -p.wrong)[:_PLACES]
        best = [p for p in sorted(places, key=lambda p: p.wrong) if p.varied and p not in worst]
        return worst, best[:_PLACES]
    key = "foreground" if evaluation.ndim == 3 else None
    rows = evaluation.scores["cases"]
    means = [(row[key] if key else row)["mean_dice"] for row in rows]
    order = sorted((i for i, m in enumerate(means) if m is not None), key=lambda i: means[i])
    half = -(-len(order) // 2)
    worst = [_place_of(evaluation.cases[i].case, ignore, worst=True) for i in order[:half][:_PLACES]]
    best = [_place_of(evaluation.cases[i].case, ignore, worst=False) for i in order[half:][::-1][:_PLACES]]
    return worst, best


def draw(place: Place, classes: ClassTable, ignore: int | None) -> Image.Image:
    """Prediction, truth and their differences side by side, above a legend."""
    if place.box.ndim == 3:
        # What is not an organ is dark, as in a scan, whatever colour a table has for it.
        classes = ClassTable(tuple(replace(c, color=_BACKGROUND) if c.value == 0 else c for c in classes))
    p = place.case.prediction.read(place.box)
    t = place.case.truth.read(place.box, ignore)
    spacing = place.case.truth.space.spacing
    if place.box.ndim == 3:
        # Index 0 is the bottom of a volume and the top of a picture.
        p, t = p[0, ::-1], t[0, ::-1]
    sides = [n * s for n, s in zip(p.shape, spacing[-2:], strict=True)]
    size = tuple(max(1, round(_SHOWN * side / max(sides))) for side in sides[::-1])
    panels = [
        Image.fromarray(a).resize((size[0], size[1]), Image.Resampling.NEAREST)
        for a in (_colored(p, classes), _colored(t, classes), _differences(p, t, place.box.ndim == 3))
    ]
    there = [(c.rgb, c.name) for c in classes if c.value in p or c.value in t]
    return _sheet(panels, there, _kinds(place.box.ndim == 3), place.caption)


def _place_of(case: Case, ignore: int | None, *, worst: bool) -> Place:
    places = list(_places(case, ignore))
    if worst:
        return max(places, key=lambda p: p.wrong)
    return min([p for p in places if p.varied] or places, key=lambda p: p.wrong)


def _places(case: Case, ignore: int | None) -> Iterator[Place]:
    """Every square or plane with a label in it."""
    shape = case.truth.space.shape
    volume = len(shape) == 3
    read = (_PLANES, *shape[1:]) if volume else (_SQUARE * _ROWS,) * 2
    cell = (1, *shape[1:]) if volume else (_SQUARE,) * 2
    found: list[tuple[Box, int, int, int]] = []
    for part in Box.whole(shape).split(read):
        p, t = case.prediction.read(part), case.truth.read(part, ignore)
        for box in part.split(cell):
            here = box.relative(part.start).slices
            found += [(box, *_counted(p[here], t[here], volume))]
    # A few pixels at the edge, or a tip of an organ, say little.
    most = max(considered for _, considered, _, _ in found)
    for box, considered, wrong, second in found:
        if considered and considered >= most / 4:
            yield Place(case, box, wrong / considered, volume or second >= considered / 50)


def _counted(p: Labels, t: Labels, volume: bool) -> tuple[int, int, int]:
    """Pixels that matter, those of them that are wrong, and those of the truth's second largest class."""
    known = (p != UNKNOWN) & (t != UNKNOWN)
    if volume:
        known &= (p != 0) | (t != 0)
    second = int(np.sort(np.bincount(t[known], minlength=2))[-2])
    return int(np.count_nonzero(known)), int(np.count_nonzero(known & (p != t))), second


def _colored(labels: Labels, classes: ClassTable) -> Picture:
    palette = np.full((256, 3), _BLANK, np.uint8)
    for c in classes:
        palette[c.value] = c.rgb
    return palette[labels]


def _differences(p: Labels, t: Labels, volume: bool) -> Picture:
    drawn = np.full((*p.shape, 3), _RIGHT, np.uint8)
    drawn[p != t] = _OTHER
    if volume:
        drawn[(p == 0) & (t != 0)] = _MISSED
        drawn[(p != 0) & (t == 0)] = _EXTRA
        drawn[(p == 0) & (t == 0)] = _BLANK
    drawn[(p == UNKNOWN) | (t == UNKNOWN)] = _BLANK
    return drawn


def _kinds(volume: bool) -> list[tuple[Color, str]]:
    if volume:
        return [(_RIGHT, "right"), (_MISSED, "missed"), (_EXTRA, "too much"), (_OTHER, "another class")]
    return [(_RIGHT, "right"), (_OTHER, "wrong"), (_BLANK, "left out")]


def _sheet(
    panels: Sequence[Image.Image],
    classes: Sequence[tuple[Color, str]],
    kinds: Sequence[tuple[Color, str]],
    caption: str,
) -> Image.Image:
    column = max(panels[0].width, 220)
    legend = max(len(kinds), -(-len(classes) // 2))
    height = _LINE * (legend + 3) + panels[0].height + 2 * _GAP
    sheet = Image.new("RGB", (3 * column + 4 * _GAP, height), "white")
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    canvas.text((_GAP, _GAP // 2), caption, fill="black", font=font)
    top = _GAP // 2 + _LINE
    for i, (panel, title) in enumerate(zip(panels, ("prediction", "truth", "differences"), strict=True)):
        x = _GAP + i * (column + _GAP)
        canvas.text((x, top), title, fill="#555555", font=font)
        sheet.paste(panel, (x, top + _LINE))
        canvas.rectangle((x - 1, top + _LINE - 1, x + panel.width, top + _LINE + panel.height), outline="#bbbbbb")
    below = top + _LINE + panels[0].height + _GAP
    entries = [(color, name, *divmod(i, legend)) for i, (color, name) in enumerate(classes)]
    entries += [(color, name, 2, i) for i, (color, name) in enumerate(kinds)]
    for color, name, across, down in entries:
        x, y = _GAP + across * (column + _GAP), below + down * _LINE
        canvas.rectangle((x, y + 2, x + 16, y + 18), fill=color, outline="black")
        canvas.text((x + 24, y), name, fill="black", font=font)
    return sheet
