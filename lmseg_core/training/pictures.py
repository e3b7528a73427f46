"""Pictures of a training: its curves, and what it makes of the validation data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmseg_core.classes import SegmentClass
from lmseg_core.training.windows import GridWindows

_ROWS = 6
_SIDE = 2.4  # inches of a picture along its longer side
_LEGEND = 24  # classes that a legend has room for
_NAMES = {"mean_iou": "mean IoU", "mean_dice": "mean Dice", "foreground_dice": "foreground Dice"}


def draw_curves(history: Sequence[dict[str, float]], metric: str, path: Path) -> None:
    """Draw loss, validation figures and learning rate by step, beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, watched, rate = figure.subplots(1, 3)
    trained = [entry for entry in history if "loss" in entry]
    steps = [entry["step"] for entry in trained]
    loss.plot(steps, [entry["loss"] for entry in trained], color="#2b6cb0")
    loss.set(title="loss", ylim=(0, None))
    rate.plot(steps, [entry["learning_rate"] for entry in trained], color="#718096")
    rate.set(title="learning rate of the first part", ylim=(0, None))
    evaluated = [entry for entry in history if f"eval_{metric}" in entry]
    for name in dict.fromkeys((metric, "mean_iou", "pixel_accuracy")):
        values = [entry[f"eval_{name}"] for entry in evaluated]
        watched.plot([entry["step"] for entry in evaluated], values, marker=".", label=_NAMES.get(name, "accuracy"))
    if evaluated:
        best = max(evaluated, key=lambda entry: entry[f"eval_{metric}"])
        watched.axvline(best["step"], color="#a0aec0", linestyle=":", label="kept")
    watched.set(title="validation", ylim=(None, 1))
    watched.legend(loc="lower right")
    for axes in (loss, watched, rate):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


@torch.inference_mode()
def draw_validation(model: nn.Module, windows: GridWindows, classes: Sequence[SegmentClass], path: Path) -> None:
    """Draw image, truth and prediction of a few windows, with the names of the classes.

    Volumes by the slice that has most labels beside the first class.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [_row(model, windows[int(index)], len(classes)) for index in _chosen(len(windows))]
    height, width = rows[0][1].shape
    scale = _SIDE / max(height, width)
    figure = Figure(figsize=(3 * width * scale + 2.2, len(rows) * height * scale + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    palette = _palette(classes)
    for axes, (image, truth, prediction) in zip(grid, rows, strict=True):
        for axis, picture in zip(axes, (_stretched(image), palette[truth], palette[prediction]), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(title)
    patches = [Patch(facecolor=entry.color, edgecolor="#a0aec0", label=entry.name) for entry in classes[:_LEGEND]]
    patches.append(Patch(facecolor="white", edgecolor="#a0aec0", label="not labelled"))
    figure.legend(handles=patches, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=100)


def _chosen(count: int) -> NDArray[np.int64]:
    """Windows spread evenly over all, (n,)."""
    return np.unique(np.linspace(0, count - 1, min(_ROWS, count)).round().astype(np.int64))


def _row(model: nn.Module, item: Any, classes: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Image (C, y, x), truth and prediction (y, x) of a window, with `classes` for what is not labelled."""
    values: Tensor = item["pixel_values"]
    logits = model(pixel_values=values[None].to(next(model.parameters()).device)).logits
    image, truth = values.nan_to_num().numpy(), np.minimum(np.asarray(item["labels"]), classes)
    prediction = logits.argmax(1)[0].cpu().numpy()
    if truth.ndim == 3:
        at = int(np.argmax(((truth > 0) & (truth < classes)).sum((1, 2))))
        image, truth, prediction = image[:, at], truth[at], prediction[at]
        # Upright for people: the array begins at the feet and at the back.
        image, truth, prediction = image[:, ::-1], truth[::-1], prediction[::-1]
    return image, truth, prediction


def _stretched(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The first three bands, or the first, stretched from the 2nd to the 98th percentile: (C, y, x) -> (y, x, 3)."""
    shown = image[:3] if len(image) >= 3 else image[:1].repeat(3, 0)
    low, high = np.percentile(shown, [2, 98], axis=(1, 2), keepdims=True)
    scaled = (shown - low) / np.maximum(high - low, 1e-6)
    stretched: NDArray[np.uint8] = (scaled.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return stretched


def _palette(classes: Sequence[SegmentClass]) -> NDArray[np.uint8]:
    """A colour each class, and white for what is not labelled: (K + 1, 3)."""
    colours = [entry.color for entry in classes] + ["#ffffff"]
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], np.uint8)
