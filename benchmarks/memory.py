"""Peak memory of segmenting small and large inputs of the same kind.

    python benchmarks/memory.py DUBAI/tile_7 --folder SCRATCH

Rasters are made by repeating the mosaic of the nine image parts in DUBAI/tile_7, volumes by repeating noise. Each is
segmented in a process of its own, by the stages that `lmseg segment` runs, with a model that costs next to nothing: it
compares the first band with a few thresholds. Prints a table and, with `--json FILE`, writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import rasterio
from dubai_tiles import mosaic
from numpy.typing import NDArray
from rasterio.transform import Affine

import tiling
from flows import stages
from flows.parameters import RegionParameters, VolumeParameters
from tiling.budget import choose_block
from tiling.heap import ENVIRONMENT

RASTERS = (6_000, 24_000, 48_000)
VOLUMES = ((256, 256, 256), (1024, 512, 512))


def write_raster(path: Path, side: int, pattern: NDArray[np.uint8]) -> None:
    """A tiled GeoTIFF of side x side x 3 that repeats `pattern`, in UTM zone 40N for want of a true place."""
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs="EPSG:32640",
        transform=Affine(0.3, 0, 300_000, 0, -0.3, 2_800_000), tiled=True, blockxsize=512, blockysize=512,
        compress="DEFLATE", zlevel=1, BIGTIFF="IF_SAFER",
    ) as target:  # fmt: skip
        columns = np.arange(side) % pattern.shape[1]
        for row in range(0, side, 512):
            rows = np.arange(row, min(row + 512, side)) % pattern.shape[0]
            strip = pattern[rows][:, columns]
            target.write(strip.transpose(2, 0, 1), window=((row, row + len(rows)), (0, side)))


def write_volume(path: Path, shape: tuple[int, int, int]) -> None:
    """A .nii.gz of smooth int16 noise, written plane by plane; `shape` is (z, y, x)."""
    import gzip

    header = nibabel.Nifti1Header()
    header.set_data_shape(shape[::-1])
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([0.8, 0.8, 0.8, 1]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    plane = np.random.default_rng(0).integers(-1000, 1000, shape[1:], np.int16)
    with gzip.open(path, "wb", 1) as stream:
        stream.write(header.binaryblock + b"\0\0\0\0")
        for z in range(shape[0]):
            stream.write(np.roll(plane, z, axis=1).tobytes())


@dataclass(frozen=True)
class Thresholds:
    """A model that scores how far the first band lies from the middle of each of `n` levels."""

    ndim: int
    channels: int
    n: int
    batch: int = 2
    digest: str = "thresholds"
    logits: bool = False

    @property
    def tile(self) -> tuple[int, ...]:
        return (256, 256) if self.ndim == 2 else (40, 48, 40)

    @property
    def classes(self) -> list[tuple[int, str, str, None]]:
        return [(i, f"level {i}", f"#{40 * i:02x}8060", None) for i in range(self.n)]

    def place(self, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[Any]:
        return values

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        first = batch[:, :1].astype(np.float32)
        levels = np.linspace(0, 255, self.n, dtype=np.float32).reshape(-1, *[1] * self.ndim)
        return -np.abs(first - levels)

    def peak_memory(self) -> int:
        return 0


def segment(source: Path, out: Path) -> None:
    """What `lmseg segment` does, with `Thresholds` for a model."""
    import lmseg_core.predictor  # noqa: F401  # its libraries are part of the command's memory

    kind = VolumeParameters if source.name.endswith(".gz") else RegionParameters
    parameters = kind(sources=[str(source)], output=out)
    image = stages.open_image(str(source), parameters)
    model = Thresholds(image.space.ndim, image.channels, 6 if image.space.ndim == 2 else 3)
    area = stages.area_of(image, parameters)
    grid = choose_block(image, model, model.tile, 0.25, parameters.memory, area=area)
    out.mkdir()
    store = tiling.create(out / "run.zarr", image, grid, model)
    run = stages.Run(str(source), "run", image, model, store, parameters, 0.0, ())
    stages.compute(run, stages.pending(run))
    stages.finish(run)


def measure(source: Path, out: Path) -> dict[str, Any]:
    """Peak resident memory of one segmentation, from the operating system's record of its process."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    # As the command sets it for itself.
    process = subprocess.Popen(
        [sys.executable, __file__, "--segment", str(source), "--folder", str(out)],
        env=os.environ | ENVIRONMENT,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"segmenting {source} failed")
    report = json.loads((out / "run.run.json").read_text())
    return {
        "input": source.name,
        "wall_s": round(time.perf_counter() - start, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "tiles": report["tiles"],
        "blocks": report["blocks"],
        "seconds": report["seconds"],
    }


def inputs(folder: Path, dubai: Path) -> Iterator[Path]:
    """From small to large, rasters first."""
    pattern = mosaic(dubai, "image_part_{:03}.jpg", "RGB").transpose(1, 2, 0)
    for side in RASTERS:
        path = folder / f"raster{side}.tif"
        if not path.exists():
            write_raster(path, side, pattern)
        yield path
    for shape in VOLUMES:
        path = folder / f"volume{shape[0]}.nii.gz"
        if not path.exists():
            write_volume(path, shape)
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dubai", type=Path, nargs="?", help="folder tile_7 of the Dubai data set")
    parser.add_argument("--folder", type=Path, default=Path("memory-benchmark"), help="where inputs and results go")
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--segment", type=Path, help="segment this one input only, into --folder")
    arguments = parser.parse_args()
    if arguments.segment is not None:
        segment(arguments.segment, arguments.folder)
        return
    if arguments.dubai is None:
        parser.error("the folder of the Dubai tile is missing")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for source in inputs(arguments.folder, arguments.dubai):
        rows.append(measure(source, arguments.folder / "out"))
        print(json.dumps(rows[-1]), flush=True)
    for small, *larger in (rows[: len(RASTERS)], rows[len(RASTERS) :]):
        for large in larger:
            growth = large["peak_mib"] / small["peak_mib"] - 1
            print(
                f"{small['input']} -> {large['input']}: {small['peak_mib']} -> {large['peak_mib']} MiB, {growth:+.1%}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
