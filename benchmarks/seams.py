"""Seams of lmseg's blending beside those of MONAI's sliding windows: labels that one centred tile gives otherwise.

    python benchmarks/seams.py IMAGE --model aerial-tiny --places 300

Of each row the whole image is predicted with the same network and tile. Round places on its own tile borders, the same
ones each time, the labels are compared with those of one tile that has the place in its middle.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

import tiling
from lmseg_core import Predictor
from lmseg_core.locality import stride_of
from tiling import Area, Box, Grid
from tiling.batches import predicted
from tiling.blend import blend
from tiling.seams import Place, around, centred_tile, ratio_interval, sample_places

ROWS = (("lmseg", 0.25), ("lmseg", 0.5), ("MONAI, Gaussian", 0.25), ("MONAI, Gaussian", 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", default="aerial-tiny")
    parser.add_argument("--places", type=int, default=300)
    told = parser.parse_args()
    model = Predictor.from_pretrained(told.model, device="cpu")
    whole = tiling.open(told.image)
    (tile,) = set(model.tile)
    # Sides that tiles fill at both overlaps: else the last ones share more than the others, each library's in its way.
    step = 3 * tile // 2
    height, width = (tile + (side - tile) // step * step for side in whole.space.shape)
    values = whole.read(Box.whole((height, width))).values
    source = tiling.ArraySource(values)
    print(f"{width} x {height} of {told.image.name}, {told.model}, {told.places} places a row\n")
    print("| row | overlap | labels that change | 95 % interval |\n| --- | ---: | ---: | ---: |")
    for name, overlap in ROWS:
        grid = Grid.regular((height, width), tile, overlap)
        labels = _ours(model, values, grid) if name == "lmseg" else _monai(model, values, overlap)
        places = sample_places(source, grid, Area(grid.area), told.places)
        pairs = list(_changed(model, values, labels, grid, places))
        share = ratio_interval(*np.array(pairs).T)
        print(f"| {name} | {overlap} | {share.value:.4%} | {share.low:.4%} to {share.high:.4%} |", flush=True)


def _ours(model: Predictor, values: NDArray[Any], grid: Grid) -> NDArray[Any]:
    labels = np.empty(grid.shape, np.uint8)
    area = Box.whole(grid.shape)
    scores = predicted(model, model.place(values.copy()), area, list(grid.tiles(area)), len(model.classes))
    for box, total, _ in blend(grid, area, scores):
        labels[box.slices] = total.argmax(axis=0)
    return labels


def _monai(model: Predictor, values: NDArray[Any], overlap: float) -> NDArray[Any]:
    batch = torch.from_numpy(values.astype(np.float32))[None]
    scores: Any = sliding_window_inference(batch, model.tile, model.batch, model, overlap=overlap, mode="gaussian")
    found: NDArray[Any] = scores[0].argmax(0).to(torch.uint8).numpy()
    return found


def _changed(
    model: Predictor, values: NDArray[Any], labels: NDArray[Any], grid: Grid, places: list[Place]
) -> Iterator[tuple[int, int]]:
    """Labels that change and labels in all, round each place."""
    stride = stride_of(model)
    for place in places:
        box, tile = around(grid, place), centred_tile(grid, place, stride)
        scores = model(model.place(values[(slice(None), *tile.slices)].copy())[None])
        alone = scores[0].argmax(0).numpy()[box.relative(tile.start).slices]
        yield int((alone != labels[box.slices]).sum()), box.size


if __name__ == "__main__":
    main()
