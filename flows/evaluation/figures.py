"""The figures of an evaluation as plain JSON values: by class, by case, over cases, and pooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.evaluation.counts import CaseScores
from flows.evaluation.reliability import Calibration, pooled
from lmseg_core.metrics import Confusion, mean
from lmseg_core.surface import CLASSES, MOST, UNKNOWN, Outlines
from tiling import ClassTable

SURFACE = ("boundary_f1", "hd95", "nsd")


def figures(counted: Sequence[CaseScores], classes: ClassTable, calibration: Calibration | None) -> dict[str, Any]:
    """Every figure as plain JSON values; None where there is none."""
    rows = [_case_figures(c, classes, calibration) for c in counted]
    confusion = total(counted)
    outlines = [c.outlines for c in counted if c.outlines is not None]
    alone = len(counted) == 1
    # A percentile has no sum: the pooled one is the mean over the cases that have one.
    hd95 = counted[0].hd95 if alone else np.array([mean(v) for v in np.stack([c.hd95 for c in counted]).T])
    scores = _figures(confusion, sum(outlines[1:], outlines[0]) if outlines else None, hd95, classes)
    if alone:
        _explain(scores, counted[0])
    part = confusion.take(classes.values)
    tolerances, units = {c.measure.tolerance for c in counted}, {c.measure.unit for c in counted}
    return {
        **scores,
        "unpredicted": sum(c.unpredicted for c in counted),
        "ece": number(pooled(calibration.before).ece) if calibration else None,
        "ece_scaled": number(pooled(calibration.after).ece) if calibration else None,
        "temperature": number(calibration.temperature) if calibration else None,
        "tolerance": tolerances.pop() if len(tolerances) == 1 else None,
        "unit": units.pop() if len(units) == 1 else None,
        "confusion": {
            "values": list(classes.values),
            "counts": part.matrix.tolist(),
            "by_truth": [[number(v) for v in row] for row in part.by_truth],
        },
        "mean_over_cases": _over_cases(rows, lambda v: float(np.mean(v))),
        "sd_over_cases": _over_cases(rows, lambda v: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan),
        "cases": rows,
    }


def number(value: float) -> float | None:
    """None for what JSON cannot say."""
    return float(value) if math.isfinite(value) else None


def total(counted: Sequence[CaseScores]) -> Confusion:
    """One confusion matrix over all cases."""
    confusion = Confusion(CLASSES, UNKNOWN)
    for c in counted:
        confusion.matrix += c.confusion.matrix
    return confusion


def _case_figures(counted: CaseScores, classes: ClassTable, calibration: Calibration | None) -> dict[str, Any]:
    name = counted.case.name
    scores = _figures(counted.confusion, counted.outlines, counted.hd95, classes)
    _explain(scores, counted)
    return {
        "name": name,
        "prediction": counted.case.prediction.name,
        "truth": counted.case.truth.name,
        **scores,
        "unpredicted": counted.unpredicted,
        "ece": number(calibration.before[name].ece) if calibration and name in calibration.before else None,
        "ece_scaled": number(calibration.after[name].ece) if calibration and name in calibration.before else None,
        "tolerance": counted.measure.tolerance,
        "unit": counted.measure.unit,
    }


def _figures(
    confusion: Confusion,
    outlines: Outlines | None,
    hd95: NDArray[np.float64],
    classes: ClassTable,
) -> dict[str, Any]:
    none = np.full(CLASSES, np.nan)
    f1, nsd = (none, none) if outlines is None else (outlines.boundary_f1, outlines.nsd)
    by_class = {"iou": confusion.iou, "dice": confusion.dice, "boundary_f1": f1, "hd95": hd95, "nsd": nsd}
    means = {"mean_iou": "iou", "mean_dice": "dice"} | {name: name for name in SURFACE}
    values = list(classes.values)
    organs = [v for v in values if v != 0]
    return {
        "pixels": int(confusion.matrix.sum()),
        "pixel_accuracy": number(confusion.pixel_accuracy),
        **{name: number(mean(by_class[of][values])) for name, of in means.items()},
        # Class 0 is the background of volumes, and published means leave it out.
        "foreground": {name: number(mean(by_class[of][organs])) for name, of in means.items()},
        "classes": [
            {
                "value": c.value,
                "name": c.name,
                **{name: number(figure[c.value]) for name, figure in by_class.items()},
                "pixels": int(confusion.support[c.value]),
                "hd95_reason": None,
            }
            for c in classes
        ],
    }


def _explain(scores: dict[str, Any], counted: CaseScores) -> None:
    """Says of each class without HD95 why it has none."""
    if counted.outlines is None:
        return
    for row in scores["classes"]:
        predicted, true = counted.outlines.elements[:, row["value"]]
        if row["hd95"] is not None:
            continue
        if not predicted and not true:
            row["hd95_reason"] = "no outline in either"
        elif not predicted or not true:
            row["hd95_reason"] = f"no outline in the {'truth' if predicted else 'prediction'}: infinite"
        else:
            row["hd95_reason"] = f"more than {MOST} outline elements: too many to hold"


def _over_cases(rows: list[dict[str, Any]], statistic: Callable[[list[float]], float]) -> dict[str, Any]:
    """A statistic of every figure over the cases that have it."""

    def of(values: list[float | None]) -> float | None:
        there = [v for v in values if v is not None]
        return number(statistic(there)) if there else None

    plain = ("pixel_accuracy", "mean_iou", "mean_dice", *SURFACE)
    return {
        **{name: of([row[name] for row in rows]) for name in plain},
        "foreground": {name: of([row["foreground"][name] for row in rows]) for name in rows[0]["foreground"]},
        "classes": [
            {
                "value": c["value"],
                "name": c["name"],
                **{name: of([row["classes"][i][name] for row in rows]) for name in ("iou", "dice", *SURFACE)},
                # How many cases a class is in, and in how many of them one side lacks it.
                "cases": sum(row["classes"][i]["dice"] is not None for row in rows),
                "infinite": sum("infinite" in (row["classes"][i]["hd95_reason"] or "") for row in rows),
            }
            for i, c in enumerate(rows[0]["classes"])
        ],
    }
