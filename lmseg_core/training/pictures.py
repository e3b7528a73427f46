"""Pictures of a training: its curves, and what it makes of the validation data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from lmseg_core.training.windows import GridWindows

_ROWS = 6
_GAP = 6


def draw_curves(history: Sequence[dict[str, float]], metric: str, path: Path) -> None:
    """Draw loss and learning rate by step beside the validation figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    trained = [entry for entry in history if "loss" in entry]
    left.plot([entry["step"] for entry in trained], [entry["loss"] for entry in trained], color="#2b6cb0")
    left.set(xlabel="step", ylabel="loss", title="training")
    rate = left.twinx()
    rate.plot([e["step"] for e in trained], [e["learning_rate"] for e in trained], color="#b0b0b0", linewidth=1)
    rate.set_ylabel("learning rate")
    watched = [entry for entry in history if f"eval_{metric}" in entry]
    steps = [entry["step"] for entry in watched]
    for name in dict.fromkeys((metric, "mean_iou", "pixel_accuracy")):
        right.plot(steps, [entry[f"eval_{name}"] for entry in watched], marker=".", label=name)
    right.set(xlabel="step", title="validation")
    right.grid(alpha=0.3)
    right.legend()
    figure.savefig(path, dpi=110)


@torch.inference_mode()
def draw_validation(model: nn.Module, windows: GridWindows, colours: Sequence[str], path: Path) -> None:
    """Draw image, truth and prediction of a few windows, rows of three; volumes by the slice with most labels."""
    device = next(model.parameters()).device
    palette = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], np.uint8)
    rows = []
    for index in np.linspace(0, len(windows) - 1, min(_ROWS, len(windows))).round().astype(int):
        item = windows[int(index)]
        logits = model(pixel_values=item["pixel_values"][None].to(device)).logits
        image, truth = item["pixel_values"].numpy(), np.asarray(item["labels"])
        prediction = logits.argmax(1)[0].cpu().numpy()
        if truth.ndim == 3:
            at = int(np.argmax(((truth > 0) & (truth < len(colours))).sum((1, 2))))
            image, truth, prediction = image[:, at], truth[at], prediction[at]
        rows.append(
            np.concatenate(_spaced([_grey(image), _coloured(truth, palette), _coloured(prediction, palette)], 1), 1)
        )
    Image.fromarray(np.concatenate(_spaced(rows, 0), 0)).save(path)


def _grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The first three bands, or the first, stretched from the 2nd to the 98th percentile: (C, y, x) -> (y, x, 3)."""
    shown = image[:3] if len(image) >= 3 else image[:1].repeat(3, 0)
    low, high = np.nanpercentile(shown, [2, 98], axis=(1, 2), keepdims=True)
    scaled = (shown - low) / np.maximum(high - low, 1e-6)
    grey: NDArray[np.uint8] = (np.nan_to_num(scaled).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return grey


def _coloured(labels: NDArray[Any], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    known = np.minimum(labels, len(palette))
    extended = np.concatenate([palette, np.full((1, 3), 255, np.uint8)])  # what is ignored is white
    coloured: NDArray[np.uint8] = extended[known]
    return coloured


def _spaced(parts: list[NDArray[np.uint8]], axis: int) -> list[NDArray[np.uint8]]:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return [piece for part in parts for piece in (part, gap)][:-1]
