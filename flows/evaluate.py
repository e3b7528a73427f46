"""Labels against the truth, streamed."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tiling
from lmseg_core.metrics import Confusion
from tiling import Box, InputError, Source, Store

_PIECE = {2: 4096, 3: 128}


def evaluate(prediction: str, truth: str, ignore: int | None = None) -> dict[str, Any]:
    """Scores of a label map against the true labels, read piece by piece.

    Args:
        prediction: a raster, a volume or the store of a run.
        truth: a raster or a volume on the same grid.
        ignore: a value of the truth to leave out, besides its nodata and 255.

    Returns:
        `pixels`, `pixel_accuracy`, `mean_iou`, `mean_dice` and, per class, `iou`, `dice` and `pixels`; None where a
        class is in neither.

    Raises:
        InputError: where the two lie on different grids or hold no labels.
    """
    predicted: Source | Store = (
        tiling.open_store(prediction) if prediction.rstrip("/").endswith(".zarr") else tiling.open(prediction)
    )
    true = tiling.open(truth)
    _check_same_grid(prediction, predicted, truth, true)
    names = _names(predicted)
    largest = max(names, default=0)
    confusion = Confusion(max(largest + 1, 2))
    for box in Box.whole(true.space.shape).split((_PIECE[true.space.ndim],) * true.space.ndim):
        p, t = _labels(predicted, box, prediction), _labels(true, box, truth)
        if ignore is not None:
            t[t == ignore] = 255
        highest = int(max(p[p != 255].max(initial=0), t[t != 255].max(initial=0)))
        if highest > 254:
            raise InputError(f"{truth} or {prediction} holds the value {highest}; label maps hold 0 to 254")
        if highest >= confusion.classes:
            confusion = _widened(confusion, highest + 1)
        confusion.add(p, t)
    return {
        "pixels": int(confusion.matrix.sum()),
        "pixel_accuracy": _number(confusion.pixel_accuracy),
        "mean_iou": _number(confusion.mean_iou),
        "mean_dice": _number(confusion.mean_dice),
        "classes": [
            {
                "value": i,
                "name": names.get(i, str(i)),
                "iou": _number(confusion.iou[i]),
                "dice": _number(confusion.dice[i]),
                "pixels": int(confusion.support[i]),
            }
            for i in range(confusion.classes)
        ],
    }


def table(scores: dict[str, Any]) -> str:
    """The scores as aligned text."""
    rows = [("class", "IoU", "Dice", "pixels")]
    rows += [(c["name"], _shown(c["iou"]), _shown(c["dice"]), str(c["pixels"])) for c in scores["classes"]]
    rows.append(("mean", _shown(scores["mean_iou"]), _shown(scores["mean_dice"]), str(scores["pixels"])))
    width = max(len(r[0]) for r in rows)
    lines = [f"{name:<{width}}  {iou:>7}  {dice:>7}  {pixels:>12}" for name, iou, dice, pixels in rows]
    return "\n".join([*lines, f"pixel accuracy {_shown(scores['pixel_accuracy'])}"])


def _labels(source: Source | Store, box: Box, name: str) -> NDArray[np.int64]:
    if isinstance(source, Store):
        labels: NDArray[np.int64] = source.read(box).astype(np.int64)
        labels[labels == source.classes.nodata] = 255
        return labels
    pixels = source.read(box)
    values = pixels.values[0]
    if values.dtype.kind == "f" and np.any(values != np.rint(values)):
        raise InputError(f"{name} holds fractions, not labels; give a label map")
    labels = np.asarray(values, np.int64).copy()
    labels[~pixels.valid] = 255
    return labels


def _check_same_grid(prediction: str, predicted: Source | Store, truth: str, true: Source) -> None:
    mine = predicted.out_space if isinstance(predicted, Store) else predicted.space
    if (not isinstance(predicted, Store) and predicted.channels != 1) or true.channels != 1:
        raise InputError(f"{prediction} or {truth} has several bands; give label maps with one")
    if mine.shape != true.space.shape:
        raise InputError(f"{prediction} has shape {mine.shape} and {truth} {true.space.shape}; crop one to the other")
    if not np.allclose(mine.affine, true.space.affine, rtol=1e-6, atol=1e-6):
        raise InputError(f"{prediction} and {truth} lie at different places; warp one onto the other")


def _names(predicted: Source | Store) -> dict[int, str]:
    if isinstance(predicted, Store):
        return {c.value: c.name for c in predicted.classes}
    side = Path(f"{predicted.uri}.aux.xml")
    if not side.is_file():
        return {}
    categories = ET.parse(side).iterfind("PAMRasterBand/CategoryNames/Category")
    return {i: c.text for i, c in enumerate(categories) if c.text}


def _widened(confusion: Confusion, classes: int) -> Confusion:
    wide = Confusion(classes)
    wide.matrix[: confusion.classes, : confusion.classes] = confusion.matrix
    return wide


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
