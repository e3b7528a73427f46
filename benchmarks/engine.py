"""lmseg beside the bare network and the usual ways to run one over an image: wall, rate and peak memory.

    python benchmarks/engine.py [--side 4096] [--depth 256] [--runs 5] [--preset tiny] [--rows ...] [--scratch DIR]

Every row reads the same file, runs the same random network on tiles of the same size and overlap, and ends with labels.
Each run is a process of its own, of which loading and a warm-up are not timed; rows alternate, figures are medians.
Prints a table for a raster of `side` and a volume of `depth`, and writes engine.json beside this file.

`bare` is the limit: the network alone on tiles that are cut, normalised and in memory. `lmseg` reads, writes its store
and exports; the other rows keep their labels in memory.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

OVERLAP = 0.25
RESULTS = Path(__file__).with_suffix(".json")
TILE = {2: (256, 256), 3: (64, 64, 64)}
PRESETS = ("tiny", "small", "base")
CLASSES = 4


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
    for ndim, channels in ((2, 3), (3, 1)):
        torch.manual_seed(0)
        names = {i: f"class {i}" for i in range(CLASSES)}
        config = LMSegConfig.preset(preset, ndim, in_channels=channels, tile=list(TILE[ndim]), id2label=names)
        LMSegForSemanticSegmentation(config).save_pretrained(folder / f"model{ndim}")
        LMSegImageProcessor(mode="fixed", image_mean=[128.0] * channels, image_std=[70.0] * channels).save_pretrained(
            folder / f"model{ndim}"
        )


def read_whole(folder: Path, ndim: int) -> Any:
    """(1, C, *S) float32, normalised."""
    import torch

    if ndim == 2:
        import rasterio

        with rasterio.open(folder / "raster.tif") as image:
            values = image.read()
    else:
        import nibabel

        image = nibabel.load(folder / "volume.nii")
        values = np.asarray(image.dataobj).T[None]
    return torch.from_numpy((values.astype(np.float32) - 128) / 70)[None]


def network_of(folder: Path, ndim: int) -> Any:
    """The network as the predictor has it, from (B, C, *tile) to logits."""
    from lmseg_core import Predictor

    return Predictor.from_pretrained(folder / f"model{ndim}", device="cpu")._network


def formats(ndim: int) -> Any:
    import torch

    return {2: torch.channels_last, 3: torch.channels_last_3d}[ndim]


# --- rows: each prepares, and returns what is timed ---


def bare(folder: Path, ndim: int) -> Callable[[], Any]:
    """The network on every tile of the grid, one thread a tile, as many at a time as there are cores."""
    import torch

    from tiling import Box, Grid

    threads = os.cpu_count() or 1
    network, image = network_of(folder, ndim), read_whole(folder, ndim)
    grid = Grid.regular(tuple(image.shape[2:]), TILE[ndim], OVERLAP)
    tiles = list(grid.tiles(Box.whole(grid.shape)))

    def score(tile: Box) -> None:
        with torch.inference_mode():
            network(image[(slice(None), slice(None), *tile.slices)].contiguous(memory_format=formats(ndim)))

    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(score, tiles[: 2 * threads]))
    return lambda: list(pool.map(score, tiles))


def lmseg(folder: Path, ndim: int) -> Callable[[], Any]:
    """`lmseg segment` from the open command to the verified export."""
    from flows import stages
    from flows.parameters import RegionParameters, VolumeParameters

    source = str(folder / ("raster.tif", "volume.nii")[ndim - 2])
    kind = (RegionParameters, VolumeParameters)[ndim - 2]
    out = Path(tempfile.mkdtemp(dir=folder))
    told = kind(sources=[source], output=out, model=str(folder / f"model{ndim}"), overlap=OVERLAP, device="cpu")
    network_of(folder, ndim)

    def run() -> Any:
        with stages.workers(told) as executor:
            (found,) = stages.prepare(told)
            with stages.hold([found]):
                stages.compute(found, stages.pending(found), executor)
                report = stages.finish(found)
        return {"device": report.device(), "seconds": report.seconds}

    return run


def monai(folder: Path, ndim: int, **options: Any) -> Callable[[], Any]:
    """MONAI's sliding windows over the whole image, Gaussian weights."""
    import torch
    from monai.inferers import sliding_window_inference

    network = network_of(folder, ndim)

    def score(batch: Any) -> Any:
        return network(batch.contiguous(memory_format=formats(ndim))).logits

    def run() -> None:
        with torch.inference_mode():
            scores = sliding_window_inference(
                read_whole(folder, ndim), TILE[ndim], 2, score, overlap=OVERLAP, mode="gaussian", **options
            )
            scores[0].argmax(0).to(torch.uint8).numpy()  # type: ignore[index, union-attr]

    with torch.inference_mode():
        score(torch.zeros(2, (3, 1)[ndim - 2], *TILE[ndim]))
    return run


def monai_buffered(folder: Path, ndim: int) -> Callable[[], Any]:
    """The same with its buffer, which keeps only some rows of windows on the device."""
    return monai(folder, ndim, buffer_steps=1, buffer_dim=0)


def monai_half(folder: Path, ndim: int) -> Callable[[], Any]:
    """The same with the overlap that MONAI's tutorials and nnU-Net have."""
    global OVERLAP
    OVERLAP = 0.5
    return monai(folder, ndim)


def map_overlap(folder: Path, ndim: int) -> Callable[[], Any]:
    """dask.array.map_overlap: tiles that see their neighbours' margins and are not blended."""
    import dask.array as da
    import torch

    network = network_of(folder, ndim)
    torch.set_num_threads(1)
    margin = round(TILE[ndim][0] * OVERLAP / 2)

    def score(block: Any) -> Any:
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(block))[None]
            return network(batch.contiguous(memory_format=formats(ndim))).logits[0].argmax(0)[None].numpy()

    def run() -> None:
        image = read_whole(folder, ndim)[0].numpy()
        step = TILE[ndim][0] - 2 * margin
        array = da.from_array(image, chunks=(image.shape[0], *(step,) * ndim))
        labels = array.map_overlap(
            score, depth=(0, *(margin,) * ndim), boundary="reflect", dtype=np.int64, chunks=(1, *array.chunks[1:])
        )
        labels.astype(np.uint8).compute(scheduler="threads", num_workers=os.cpu_count())

    score(np.zeros(((3, 1)[ndim - 2], *TILE[ndim]), np.float32))
    return run


ROWS: dict[str, Callable[[Path, int], Callable[[], Any]]] = {
    "bare": bare,
    "lmseg": lmseg,
    "MONAI": monai,
    "MONAI buffered": monai_buffered,
    "MONAI overlap 0.5": monai_half,
    "map_overlap": map_overlap,
}


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
    entries = []
    with tempfile.TemporaryDirectory(dir=told.scratch) as name:
        write_inputs(Path(name), told.side, told.depth, told.preset)
        for ndim in told.ndim:
            runs: dict[str, list[dict[str, Any]]] = {row: [] for row in told.rows}
            for _ in range(told.runs):
                for row in told.rows:
                    command = [sys.executable, __file__, "--one", row, name, str(ndim)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    runs[row].append(json.loads(done.stdout.splitlines()[-1]))
            entries.append(entry(told, ndim, runs))
            sys.stdout.write(table(entries[-1]))
    RESULTS.write_text(json.dumps(entries, indent=1) + "\n")


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
    size = (told.side,) * 2 if ndim == 2 else (told.depth,) * 3
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
