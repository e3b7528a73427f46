"""Label maps, runs and folders of cases to be scored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine

import tiling
from tests.flows.conftest import Cli
from tests.tiling.files import write_volume
from tests.tiling.predictors import Mixing
from tests.tiling.runs import image_of

PLACE = Affine(10, 0, 500_000, 0, -10, 4_000_000)


def write_labels(
    path: Path,
    labels: np.ndarray[Any, Any],
    transform: Affine = PLACE,
    nodata: int | None = 255,
    crs: str | None = "EPSG:32618",
) -> Path:
    """Write labels as a GeoTIFF."""
    with rasterio.open(
        path, "w", driver="GTiff", width=labels.shape[1], height=labels.shape[0], count=1, dtype=labels.dtype,
        crs=crs, transform=transform, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(labels, 1)
    return path


def write_run(path: Path, outputs: tuple[str, ...] = ()) -> tiling.Store:
    """Make a finished run of 96 x 80 pixels and 3 classes."""
    source = image_of((96, 80))
    grid = tiling.Grid.regular((96, 80), tile=32, overlap=0.25, block=64)
    model = Mixing(2, (32, 32))
    store = tiling.create(path, source, grid, model, outputs=outputs)
    tiling.segment(source, model, store)
    return store


def write_folders(folder: Path) -> tuple[Path, Path]:
    """Write three volumes named in two ways, predictions moved by none, one and two voxels."""
    rng = np.random.default_rng(0)
    for i, size in enumerate((10, 7, 12)):
        truth = np.zeros((24, 26, 22), np.uint8)
        truth[4 : 4 + size, 5:15, 6:14] = 1
        truth[4 : 4 + size, 15:18, 6:14] = 1 + rng.integers(0, 2)
        for part in ("p", "t"):
            (folder / part).mkdir(exist_ok=True)
        write_volume(folder / "t" / f"case{i}_labels.nii.gz", truth)
        write_volume(folder / "p" / f"case{i}_seg.nii", np.roll(truth, i, axis=0))
    return folder / "p", folder / "t"


def scores_of(cli: Cli, *arguments: object) -> dict[str, Any]:
    """Return what `lmseg evaluate ARGUMENTS --json` prints."""
    code, out, err = cli("evaluate", *arguments, "--json")
    assert (code, err) == (0, "")
    scores: dict[str, Any] = json.loads(out)
    return scores
