"""What is counted in a case: pairs of labels and surface elements, read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.evaluation.cases import Case
from flows.evaluation.labels import LabelMap
from lmseg_core.metrics import Confusion
from lmseg_core.surface import CLASSES, UNKNOWN, Outlines, Surfaces, halo
from tiling import Box, ClassTable, InputError, Space

_SIDE = 2048  # pixels of a piece, a side
_VOXELS = 2**23  # of a piece: as many whole planes, as files hold them
_REACH = {2: 1024, 3: 128}  # elements that a tolerance may reach: every piece is read with as many around it
_DIAGONAL = 0.0075


@dataclass(frozen=True)
class Measure:
    """In what outlines are measured.

    Attributes:
        steps: (ndim, ndim) world vector of a step along each array axis.
        unit: `mm`, `px`, or that of the CRS.
        tolerance: distance in `unit` at which outlines agree.
    """

    steps: NDArray[np.float64]
    unit: str
    tolerance: float


@dataclass(frozen=True)
class CaseScores:
    """What was counted in one case, over the values 0 to 254.

    Attributes:
        unpredicted: pixels with a truth and no prediction, which no figure counts.
        outlines: surface elements; None where they were not asked for.
        hd95: (255,) infinite where only one side has a surface, nan where neither has or there were too many elements.
    """

    case: Case
    measure: Measure
    confusion: Confusion
    unpredicted: int
    outlines: Outlines | None
    hd95: NDArray[np.float64]


def measure_of(labels: LabelMap, tolerance: float | None) -> Measure:
    """World units where there are some, pixels otherwise; by default 1 mm, 2 pixels, or 0.75 % of a plain image's
    diagonal.

    Raises:
        InputError: for a tolerance of too many pixels.
    """
    space = labels.space
    world = np.array(space.affine)[:, :-1][:, ::-1].T
    unit = "mm" if space.ndim == 3 else _crs_unit(space)
    if unit is None:
        default = 2.0 if space.crs else min(_DIAGONAL * math.hypot(*space.shape), _REACH[2] - 1)
        measure = Measure(np.eye(2), "px", tolerance or default)
    else:
        # Two pixels, in the mean of their sides.
        default = 1.0 if space.ndim == 3 else sum(space.spacing)
        measure = Measure(world, unit, tolerance or default)
    reach = max(halo(measure.steps, measure.tolerance))
    if reach > _REACH[space.ndim]:
        raise InputError(
            f"a tolerance of {measure.tolerance:g} {measure.unit} is {reach - 1} pixels of {labels.name}; "
            f"pass --tolerance for at most {_REACH[space.ndim] - 1}"
        )
    return measure


def _crs_unit(space: Space) -> str | None:
    """The unit of a projected CRS; None where a step has no length that is the same everywhere."""
    if not space.crs:
        return None
    from rasterio.crs import CRS

    crs = CRS.from_wkt(space.crs)
    if not crs.is_projected:
        return None
    name = str(crs.linear_units)
    return "m" if name in ("metre", "meter") else name


class Tally:
    """Counts one case piece by piece.

    Args:
        named: what values there may be; any where it is None.
        surface: whether outlines are compared too.
    """

    def __init__(self, case: Case, measure: Measure, named: ClassTable | None, surface: bool) -> None:
        self._case, self._measure, self._named = case, measure, named
        self._shape = case.truth.space.shape
        self._confusion, self._unpredicted = Confusion(CLASSES, UNKNOWN), 0
        # The edge of a scan cuts organs, that of a scene is where the looking stopped.
        closed = len(self._shape) == 3
        self._surfaces = Surfaces(self._shape, measure.steps, measure.tolerance, closed=closed) if surface else None

    def pieces(self) -> Iterator[Box]:
        """What to add, in order: squares of rasters, whole planes of volumes, as they lie in their files."""
        sides = tuple(min(n, _SIDE) for n in self._shape[-2:])
        planes = () if len(self._shape) == 2 else (max(8, _VOXELS // math.prod(sides)),)
        return Box.whole(self._shape).split((*planes, *sides))

    def add(self, piece: Box, ignore: int | None) -> None:
        """Reads a piece, and what lies around it within the tolerance.

        Raises:
            InputError: where a label map holds no labels, or others than those named.
        """
        around = self._surfaces.halo if self._surfaces else (0,) * piece.ndim
        seen = Box(
            tuple(max(0, a - h) for a, h in zip(piece.start, around, strict=True)),
            tuple(min(n, b + h) for b, h, n in zip(piece.stop, around, self._shape, strict=True)),
        )
        p, t = self._case.prediction.read(seen), self._case.truth.read(seen, ignore)
        if self._named is not None:
            _check_listed(self._case.prediction, p, self._named)
            _check_listed(self._case.truth, t, self._named)
        inner = piece.relative(seen.start).slices
        self._unpredicted += int(np.count_nonzero((p[inner] == UNKNOWN) & (t[inner] != UNKNOWN)))
        self._confusion.add(p[inner], t[inner])
        if self._surfaces is not None:
            self._surfaces.add(p, t, inner, seen.start)

    def scores(self) -> CaseScores:
        """What all pieces together have."""
        hd95 = np.full(CLASSES, np.nan) if self._surfaces is None else self._surfaces.hd95()
        outlines = None if self._surfaces is None else self._surfaces.outlines
        return CaseScores(self._case, self._measure, self._confusion, self._unpredicted, outlines, hd95)


def _check_listed(labels: LabelMap, values: NDArray[np.uint8], named: ClassTable) -> None:
    found = np.bincount(values.ravel(), minlength=256)[:UNKNOWN]
    found[list(named.values)] = 0
    if found.any():
        raise InputError(
            f"{labels.name} holds the value {found.argmax()}, which is none of the classes "
            f"{', '.join(f'{c.value} {c.name}' for c in named)}; renumber it, or leave it out of the truth with "
            f"--ignore {found.argmax()}"
        )
