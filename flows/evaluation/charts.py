"""Charts of an evaluation, drawn with Pillow: the confusion matrix and the reliability of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lmseg_core.calibration import BINS, Reliability
from tiling import ClassTable

_CELL = 64
_SMALL = 24  # a cell's side where there are too many classes for numbers
_NUMBERS = 16  # classes
_GAP = 16
_PLOT = 320
_STRIP = 60
_INK, _GREY = "#222222", "#888888"
_BLUE = (33, 102, 172)


def confusion_chart(by_truth: NDArray[np.float64], classes: ClassTable) -> Image.Image:
    """Rows are truth, columns prediction; a cell's depth and number are its share of the row in percent.

    Args:
        by_truth: (K, K); nan in rows of classes that the truth lacks.
    """
    k = len(classes)
    cell = _CELL if k <= _NUMBERS else _SMALL
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    names = [_short(c.name) for c in classes]
    wide = max(round(font.getlength(n)) for n in names)
    left, top = 2 * _GAP + wide + 24, 2 * _GAP + wide + 24
    chart = Image.new("RGB", (left + k * cell + 2 * _GAP, top + k * cell + 2 * _GAP), "white")
    canvas = ImageDraw.Draw(chart)
    for row in range(k):
        y = top + row * cell
        canvas.text((left - 8, y + cell // 2), names[row], fill=_INK, font=font, anchor="rm")
        for column in range(k):
            x, share = left + column * cell, by_truth[row, column]
            fill = _shade(0.0 if np.isnan(share) else float(share))
            canvas.rectangle((x, y, x + cell, y + cell), fill=fill, outline="#dddddd")
            if k <= _NUMBERS and not np.isnan(share) and share >= 0.0005:
                ink = "white" if share > 0.5 else _INK
                canvas.text((x + cell // 2, y + cell // 2), f"{share:.1%}", fill=ink, font=small, anchor="mm")
    for column, name in enumerate(names):
        _upright(chart, name, (left + column * cell + cell // 2, top - 8), font)
    canvas.text((left + k * cell // 2, _GAP), "prediction", fill=_GREY, font=font, anchor="mm")
    _upright(chart, "truth", (_GAP, top + k * cell // 2 + 20), font, _GREY)
    return chart


def reliability_chart(before: Reliability, after: Reliability, temperature: float) -> Image.Image:
    """Accuracy against confidence, as predicted and at a temperature, above how many pixels have each confidence."""
    step = _PLOT + 5 * _GAP
    chart = Image.new("RGB", (2 * step, _PLOT + _STRIP + 7 * _GAP), "white")
    for i, (reliability, title) in enumerate(((before, "as predicted"), (after, f"temperature {temperature:.3g}"))):
        _plot(ImageDraw.Draw(chart), reliability, title, (i * step + 3 * _GAP, 2 * _GAP))
    return chart


def _plot(canvas: ImageDraw.ImageDraw, reliability: Reliability, title: str, corner: tuple[int, int]) -> None:
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    x0, y0 = corner
    bottom, right = y0 + _PLOT, x0 + _PLOT
    canvas.text((x0, y0 - 8), f"{title}: calibration error {reliability.ece:.4f}", fill=_INK, font=font, anchor="lb")
    edges = [x0 + round(i * _PLOT / BINS) for i in range(BINS + 1)]
    total = max(int(reliability.counts.sum()), 1)
    for i, count in enumerate(reliability.counts):
        if not count:
            continue
        accuracy, confidence = reliability.right[i] / count, reliability.confidence[i] / count
        high, low = (bottom - round(v * _PLOT) for v in (max(accuracy, confidence), min(accuracy, confidence)))
        canvas.rectangle((edges[i] + 1, bottom - round(accuracy * _PLOT), edges[i + 1] - 1, bottom), fill=_BLUE)
        # The gap is what is wrong: red where surer than right, green where too modest.
        canvas.rectangle(
            (edges[i] + 1, high, edges[i + 1] - 1, low), fill="#e7a0a0" if confidence > accuracy else "#9fd3a8"
        )
        tall = round(count / total * _STRIP)
        canvas.rectangle(
            (edges[i] + 1, bottom + 2 * _GAP + _STRIP - tall, edges[i + 1] - 1, bottom + 2 * _GAP + _STRIP), fill=_GREY
        )
    canvas.line((x0, bottom, right, y0), fill=_INK, width=1)
    canvas.rectangle((x0, y0, right, bottom), outline=_GREY)
    canvas.line((x0, bottom + 2 * _GAP + _STRIP, right, bottom + 2 * _GAP + _STRIP), fill=_GREY)
    for share in (0, 0.5, 1):
        canvas.text((x0 + share * _PLOT, bottom + 4), f"{share:g}", fill=_INK, font=small, anchor="mt")
        canvas.text((x0 - 6, bottom - share * _PLOT), f"{share:g}", fill=_INK, font=small, anchor="rm")
    most = f"share of pixels (highest {reliability.counts.max() / total:.0%})"
    canvas.text((x0, bottom + 2 * _GAP + _STRIP + 4), most, fill=_GREY, font=small)
    canvas.text((right, bottom + 2 * _GAP + _STRIP + 4), "confidence", fill=_GREY, font=small, anchor="ra")
    canvas.text((x0 + 6, y0 + 6), "accuracy", fill=_GREY, font=small)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _shade(share: float) -> tuple[int, int, int]:
    # The root lets small errors be seen.
    depth = share**0.5
    red, green, blue = (round(255 + (c - 255) * depth) for c in _BLUE)
    return red, green, blue


def _upright(
    chart: Image.Image,
    text: str,
    foot: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    ink: str = _INK,
) -> None:
    """Text that reads upwards from its foot."""
    label = Image.new("RGB", (round(font.getlength(text)) + 4, 22), "white")
    ImageDraw.Draw(label).text((2, 11), text, fill=ink, font=font, anchor="lm")
    turned = label.rotate(90, expand=True)
    chart.paste(turned, (foot[0] - turned.width // 2, foot[1] - turned.height))


def by_truth(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """The matrix of shares that JSON holds."""
    return np.array([[np.nan if v is None else v for v in row] for row in rows])
