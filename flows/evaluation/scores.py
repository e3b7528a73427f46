"""Scores of label maps against the truth, streamed: what is asked, what is counted, and the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.evaluation.cases import Case, pair
from flows.evaluation.counts import CaseScores, Tally, measure_of
from flows.evaluation.figures import figures, total
from flows.evaluation.labels import numbered
from flows.evaluation.reliability import Calibration, calibrate
from flows.paths import AbsolutePath
from lmseg_core.surface import UNKNOWN
from tiling import ClassTable, InputError
from tiling.extras import require


class EvaluationParameters(BaseModel):
    """Score label maps against the truth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prediction: str = Field(min_length=1, description="Raster, volume, store of a run, or a folder of them.")
    truth: str = Field(min_length=1, description="True labels on the same grid, or a folder with the same names.")
    ignore: int | None = Field(None, description="Value of the truth to leave out, besides its nodata and 255.")
    tolerance: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Distance at which outlines agree: mm of volumes, CRS units of projected rasters, else pixels.",
    )
    surface: bool = Field(True, description="Also compare outlines: boundary F1, HD95 and surface Dice.")
    report: AbsolutePath | None = Field(None, description="Absolute folder for a page with tables and pictures.")
    overwrite: bool = Field(False, description="Replace a page and pictures of the same names that are no report.")


def told(**options: Any) -> EvaluationParameters:
    """The parameters that a command line gives.

    Raises:
        InputError: naming the option that has a wrong value.
    """
    try:
        return EvaluationParameters(**options)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(f"--{first['loc'][0]} {first['input']!r}: {what}") from None


@dataclass(frozen=True)
class Evaluation:
    """All cases, what their values mean, and every figure as plain JSON values."""

    cases: list[CaseScores]
    classes: ClassTable
    calibration: Calibration | None
    scores: dict[str, Any]

    @property
    def ndim(self) -> int:
        return self.cases[0].case.truth.space.ndim


def evaluate(parameters: EvaluationParameters, on_piece: Callable[[float], None] = lambda share: None) -> Evaluation:
    """Reads every case piece by piece and works out its figures.

    Args:
        on_piece: is told the share of all pixels that were counted with each piece.

    Raises:
        InputError: where cases do not match, lie on different grids, are damaged, or hold no labels of one list.
        OutputError: where one is a run that was written meanwhile.
    """
    require("evaluate", "scores")
    cases = pair(parameters.prediction, parameters.truth)
    with unchanged(cases):
        return _evaluate(cases, parameters, on_piece)


@contextmanager
def unchanged(cases: Sequence[Case]) -> Iterator[None]:
    """Read cases in the block; OutputError where one of them is a run that was written meanwhile."""
    with ExitStack() as stack:
        for case in cases:
            stack.enter_context(case.prediction.unchanged())
            stack.enter_context(case.truth.unchanged())
        yield


def _evaluate(cases: list[Case], parameters: EvaluationParameters, on_piece: Callable[[float], None]) -> Evaluation:
    measures = [measure_of(case.truth, parameters.tolerance) for case in cases]
    named = _named(cases)
    counted: list[CaseScores] = []
    pixels = sum(math.prod(case.truth.space.shape) for case in cases)
    for case, measure in zip(cases, measures, strict=True):
        tally = Tally(case, measure, named, parameters.surface)
        for piece in tally.pieces():
            tally.add(piece, parameters.ignore)
            on_piece(piece.size / pixels)
        counted.append(tally.scores())
    if not total(counted).matrix.any():
        raise InputError(
            f"{parameters.prediction} and {parameters.truth} share no pixel with a label; check nodata and --ignore"
        )
    classes = named or _occurring(counted)
    calibration = calibrate(cases, parameters.ignore)
    return Evaluation(counted, classes, calibration, figures(counted, classes, calibration))


def _named(cases: Sequence[Case]) -> ClassTable | None:
    """What values mean, from the predictions where they say so, or else from the truths.

    Raises:
        InputError: where a prediction has a class above 254.
    """
    for maps in ([c.prediction for c in cases], [c.truth for c in cases]):
        tables = [(m.name, m.classes) for m in maps if m.classes is not None]
        if not tables:
            continue
        names: dict[int, str] = {}
        colors: dict[int, str] = {}
        for name, table in tables:
            for c in table:
                if c.value >= UNKNOWN:
                    raise InputError(f"{name} has the class {c.value}; label maps to compare hold 0 to 254")
                if names.setdefault(c.value, c.name) != c.name:
                    raise InputError(
                        f"{name} calls {c.value} {c.name!r} and {tables[0][0]} {names[c.value]!r}; "
                        "evaluate them one by one"
                    )
                colors.setdefault(c.value, c.color)
        return numbered(names, colors)
    return None


def _occurring(counted: Sequence[CaseScores]) -> ClassTable:
    matrix = total(counted).matrix
    values = np.flatnonzero(matrix.any(axis=0) | matrix.any(axis=1)).tolist()
    return numbered({v: str(v) for v in values})
