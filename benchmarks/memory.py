"""Peak memory of `lmseg segment` on a small and a large input of the same kind.

    python benchmarks/memory.py DUBAI/tile_7 --folder SCRATCH

Rasters are made by repeating the mosaic of the nine image parts in DUBAI/tile_7, volumes by repeating noise. The model
is a U-Net of a few dozen weights, which costs next to nothing; what it segments means nothing. Prints a table and, with
`--json FILE`, writes it.
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
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine

from lmseg_core.config import LMSegConfig
from lmseg_core.model import LMSegForSemanticSegmentation
from lmseg_core.processor import LMSegImageProcessor

RASTERS = (6_000, 24_000)
VOLUMES = ((256, 256, 256), (1024, 512, 512))


def mosaic(folder: Path) -> NDArray[np.uint8]:
    """The tile's nine parts as one (y, x, 3) image; parts differ by a pixel and are cut to the smallest."""
    parts = [np.asarray(Image.open(folder / f"image_part_{i:03}.jpg").convert("RGB")) for i in range(1, 10)]
    height, width = (min(p.shape[a] for p in parts) for a in (0, 1))
    rows = [np.concatenate([p[:height, :width] for p in parts[r : r + 3]], axis=1) for r in (0, 3, 6)]
    return np.concatenate(rows)


def write_raster(path: Path, side: int, pattern: NDArray[np.uint8]) -> None:
    """A tiled GeoTIFF of side x side x 3 that repeats `pattern`, in UTM zone 40N for want of a true place."""
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs="EPSG:32640",
        transform=Affine(0.3, 0, 300_000, 0, -0.3, 2_800_000), tiled=True, blockxsize=512, blockysize=512,
        compress="DEFLATE", zlevel=1,
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


def write_model(path: Path, ndim: int) -> None:
    """A network of one convolution a stage and two channels, untrained."""
    config = LMSegConfig(
        ndim=ndim,
        in_channels=3 if ndim == 2 else 1,
        widths=(2, 2),
        id2label={i: f"class {i}" for i in range(6 if ndim == 2 else 3)},
    )
    LMSegForSemanticSegmentation(config).save_pretrained(path)
    channels = config.in_channels
    LMSegImageProcessor(mode="fixed", image_mean=[128.0] * channels, image_std=[64.0] * channels).save_pretrained(path)


def measure(source: Path, model: Path, out: Path) -> dict[str, Any]:
    """Runs `lmseg segment` and reads peak resident memory off the operating system's record of the process."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", "segment", str(source)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "-m", str(model), "-o", str(out), "--fresh"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"lmseg segment {source} failed")
    report = json.loads((out / f"{source.name.split('.')[0]}.run.json").read_text())
    return {
        "input": source.name,
        "wall_s": round(time.perf_counter() - start, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "tiles": report["tiles"],
        "blocks": report["blocks"],
        "seconds": report["seconds"],
    }


def cases(folder: Path, dubai: Path) -> Iterator[tuple[Path, Path]]:
    """(input, model) small and large, rasters first."""
    models = {ndim: folder / f"model{ndim}d" for ndim in (2, 3)}
    for ndim, path in models.items():
        write_model(path, ndim)
    pattern = mosaic(dubai)
    for side in RASTERS:
        path = folder / f"raster{side}.tif"
        if not path.exists():
            write_raster(path, side, pattern)
        yield path, models[2]
    for shape in VOLUMES:
        path = folder / f"volume{shape[0]}.nii.gz"
        if not path.exists():
            write_volume(path, shape)
        yield path, models[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dubai", type=Path, help="folder tile_7 of the Dubai data set")
    parser.add_argument("--folder", type=Path, default=Path("memory-benchmark"), help="where inputs and results go")
    parser.add_argument("--json", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for source, model in cases(arguments.folder, arguments.dubai):
        out = arguments.folder / "out"
        rows.append(measure(source, model, out))
        print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(out)
    for small, large in (rows[:2], rows[2:]):
        growth = large["peak_mib"] / small["peak_mib"] - 1
        print(f"{small['input']} -> {large['input']}: {small['peak_mib']} -> {large['peak_mib']} MiB, {growth:+.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
