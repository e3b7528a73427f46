"""lmseg beside the bare network and the usual ways to run one over an image: wall, rate and peak memory.

    python benchmarks/engine.py [--side 4096] [--depth 256] [--runs 5] [--preset tiny] [--rows ...] [--scratch DIR]

Every row reads the same file, runs the same random network on tiles of the same size and overlap, and ends with labels.
Each run is a process of its own, of which loading and a warm-up are not timed; rows alternate, figures are medians.
Prints a table for a raster of `side` and a volume of `depth`, and puts each into engine.json beside this file.

All rows have the network as lmseg runs it, with its norms folded. `bare` is the limit: the network alone on tiles that
are cut, normalised and in memory. `lmseg` reads, writes its store and exports; the other rows keep labels in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine_rows import CHANNELS, CLASSES, ROWS, TILE

from tiling.heap import ENVIRONMENT

RESULTS = Path(__file__).with_suffix(".json")
PRESETS = ("tiny", "small", "base")


# --- inputs ---


def write_inputs(folder: Path, side: int, depth: int, preset: str) -> None:
    """A tiled GeoTIFF, a NIfTI volume and a network for each, with random weights and fixed statistics."""
    import nibabel
    import rasterio
    import torch

    from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor

    tile = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    times = -(-side // 512)
    with rasterio.open(
        folder / "raster.tif", "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs="EPSG:32640",
        transform=rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 2.8e6), tiled=True, compress="deflate",
    ) as target:  # fmt: skip
        for row in range(times):
            rows = np.tile(tile, (1, 1, times))[:, : min(512, side - 512 * row), :side]
            target.write(rows, window=((512 * row, 512 * row + rows.shape[1]), (0, side)))
    cube = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.int16)
    volume = np.tile(cube.repeat(4, 0).repeat(4, 1).repeat(4, 2), (-(-depth // 64),) * 3)[:depth, :depth, :depth]
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "volume.nii")
    for ndim, channels in CHANNELS.items():
        torch.manual_seed(0)
        names = {i: f"class {i}" for i in range(CLASSES)}
        config = LMSegConfig.preset(preset, ndim, in_channels=channels, tile=list(TILE[ndim]), id2label=names)
        LMSegForSemanticSegmentation(config).save_pretrained(folder / f"model{ndim}")
        LMSegImageProcessor(mode="fixed", image_mean=[128.0] * channels, image_std=[70.0] * channels).save_pretrained(
            folder / f"model{ndim}"
        )


def peak() -> int:
    """Bytes this process held at most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def one(row: str, folder: Path, ndim: int) -> dict[str, Any]:
    """One run in this process."""
    run = ROWS[row](folder, ndim)
    start = time.perf_counter()
    told = run()
    return {"wall": time.perf_counter() - start, "peak": peak(), "told": told if row == "lmseg" else None}


def main() -> None:
    """Run every row in processes of its own, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--ndim", nargs="+", type=int, choices=(2, 3), default=[2, 3])
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one is not None:
        row, folder, ndim = told.one
        sys.stdout.write(json.dumps(one(row, Path(folder), int(ndim))) + "\n")
        return
    with tempfile.TemporaryDirectory(dir=told.scratch) as name:
        write_inputs(Path(name), told.side, told.depth, told.preset)
        for ndim in told.ndim:
            runs: dict[str, list[dict[str, Any]]] = {row: [] for row in told.rows}
            for _ in range(told.runs):
                for row in told.rows:
                    command = [sys.executable, __file__, "--one", row, name, str(ndim)]
                    # As the command sets it for itself.
                    heap = ENVIRONMENT if row == "lmseg" else {}
                    done = subprocess.run(command, env=os.environ | heap, stdout=subprocess.PIPE, text=True, check=True)
                    runs[row].append(json.loads(done.stdout.splitlines()[-1]))
            found = entry(told, ndim, runs)
            sys.stdout.write(table(found))
            keep(found)


def keep(found: dict[str, Any]) -> None:
    """Put a table in the place of the last one of its size, network and machine."""
    entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    same = ("size", "preset", "machine")
    entries = [other for other in entries if any(other[name] != found[name] for name in same)]
    RESULTS.write_text(json.dumps([*entries, found], indent=1) + "\n")


def entry(told: argparse.Namespace, ndim: int, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The medians of one table."""
    rows = {
        row: {
            "wall": statistics.median(r["wall"] for r in found),
            "peak": statistics.median(r["peak"] for r in found),
            "told": found[-1]["told"],
        }
        for row, found in runs.items()
    }
    size = [told.side] * 2 if ndim == 2 else [told.depth] * 3
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"size": size, "preset": told.preset, "runs": told.runs, "machine": machine, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """One table, walls also as multiples of the first row's."""
    size, rows = found["size"], found["rows"]
    first = next(iter(rows.values()))["wall"]
    lines = [f"\n{' x '.join(map(str, size))}, preset {found['preset']}, {found['machine']}, {found['runs']} runs", ""]
    lines += [f"| row | wall | of {next(iter(rows))} | Mpixel/s | peak |", "| --- | ---: | ---: | ---: | ---: |"]
    for row, figures in rows.items():
        rate = np.prod(size) / figures["wall"] / 1e6
        lines.append(
            f"| {row} | {figures['wall']:.1f} s | {figures['wall'] / first:.3f} | {rate:.2f} | "
            f"{figures['peak'] / 2**20:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
