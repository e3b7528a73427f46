"""What a run will take, before it runs."""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from array_api_compat import to_device

from tiling.area import Area
from tiling.batches import AHEAD, fitting_batch, is_out_of_memory, score
from tiling.blend import SLAB, held_pixels
from tiling.box import Box
from tiling.errors import BlockError, InputError
from tiling.grid import Grid
from tiling.layout import CHUNK
from tiling.predict import Predict
from tiling.sources import Source
from tiling.strip import IN_HAND

# Python with torch, transformers and GDAL loaded takes 400 MiB on Linux; the rest is GDAL's cache.
BASE = 432 * 2**20
# Sides of the block at the default memory; more memory makes them longer, but for the first. Blocks are flat, for tiles
# are computed twice only on borders across the other axes.
_BLOCK = {2: (1024, 4096), 3: (64, 1024, 256)}
_TILES = 17  # they span at least in 2D: borders then cost a twentieth of the tiles
_TWICE = 0.1  # of the tiles of a volume that borders may cost: there the memory of wider blocks weighs more
_WHOLE = 4 / 3  # where memory is not scarce, a side up to so much longer is not parted
_MEMORY = 2 * 2**30
_MOST_OVERLAP = 50  # times the tiles of no overlap: more is a slip of the pen, which would run for days
# What the system counts peak memory in: kilobytes but on macOS, which has bytes.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """Figures of a run.

    Attributes:
        tiles, blocks: how many are computed.
        batch: tiles in one call of the network, as many as the device has memory for.
        recomputed: share of tiles computed once more because they lie on block borders.
        memory: bytes a process will hold at its peak.
        device: bytes of the device's memory, where it has its own.
        disk: bytes at most, store, staging and export, before compression.
        seconds: of the network alone, from one timed batch.
    """

    tiles: int
    blocks: int
    block: tuple[int, ...]
    tile: tuple[int, ...]
    batch: int
    recomputed: float
    memory: int
    device: int
    disk: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """One timed batch of a model on this machine.

    Attributes:
        seconds: a tile.
        memory: bytes that the network took of this machine's memory at its peak.
        weights, device: bytes on a device with memory of its own, before the batch and at its peak.
    """

    batch: int
    seconds: float
    memory: int
    weights: int
    device: int


def probe(predict: Predict, tile: tuple[int, ...], dtype: str = "uint8") -> Probe:
    """Runs one batch twice, the first time to warm up, and times the second.

    Raises:
        InputError: where the device has no memory for one tile.
        BlockError: where the model fails on a tile.
    """
    before = _peak_rss()
    predict.peak_memory()  # of what was before
    weights = predict.peak_memory()
    whole = Box.whole(tile)
    placed = predict.place(np.zeros((predict.channels, *tile), dtype), np.ones(tile, bool))

    def run() -> None:
        found = score(predict, placed, whole, [whole] * fitting_batch(predict, tile), len(predict.classes))
        to_device(found[-1][1], "cpu")  # a GPU has not finished when the call returns

    try:
        run()
    except Exception as error:
        size = " x ".join(map(str, tile))
        if not is_out_of_memory(error):
            raise BlockError(f"the model failed on a tile of {size}: {type(error).__name__}: {error}") from error
        raise InputError(
            f"the device has no memory for one tile of {size}; pass a smaller --tile or --device cpu"
        ) from error
    start = time.perf_counter()
    run()
    batch = fitting_batch(predict, tile)
    seconds = (time.perf_counter() - start) / batch
    return Probe(batch, seconds, _peak_rss() - before, weights, predict.peak_memory())


def _peak_rss() -> int:
    """Return the bytes that this process has held at its peak."""
    return _RSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def plan(source: Source, grid: Grid, predict: Predict, *, outputs: tuple[str, ...] = ()) -> Plan:
    """The figures of segmenting the grid's area.

    Raises:
        InputError: where tiles overlap so much that it would take days, or the device has no memory for one.
        BlockError: where the model fails on a tile.
    """
    check_overlap(grid)
    measured = probe(predict, grid.tile, source.dtype.name)
    once = Grid(tuple(replace(a, block=a.stop - a.start) for a in grid.axes))
    n_classes = len(predict.classes)
    maps = 1 + ("probability" in outputs) * n_classes + ("uncertainty" in outputs)
    # Besides those of the batch that was timed.
    scores = 0 if measured.device else AHEAD * _batch_bytes(predict, grid.tile)
    device = measured.weights + AHEAD * (measured.device - measured.weights)
    return Plan(
        grid.n_tiles,
        grid.n_blocks,
        grid.block,
        grid.tile,
        measured.batch,
        grid.n_tiles / once.n_tiles - 1,
        BASE + measured.memory + scores + block_bytes(source, grid, n_classes, outputs),
        device and device + _placed_bytes(source, grid, n_classes, outputs),
        2 * maps * grid.area.size,
        grid.n_tiles * measured.seconds,
    )


def check_overlap(grid: Grid) -> None:
    """Refuse tiles that overlap so much that they cost over fifty times what they would without.

    Raises:
        InputError: with the figure.
    """
    whole = Grid(tuple(replace(a, block=a.stop - a.start) for a in grid.axes))
    apart = Grid(tuple(replace(a, step=a.tile) for a in whole.axes))
    times = whole.n_tiles / apart.n_tiles
    if times > _MOST_OVERLAP:
        share = max(overlap / tile for overlap, tile in zip(grid.overlap, grid.tile, strict=True))
        raise InputError(
            f"an overlap of {share:.4g} takes {whole.n_tiles} tiles, {times:.0f} times those of none; "
            "pass an --overlap of 0.5 or less"
        )


def block_bytes(source: Source, grid: Grid, n_classes: int, outputs: tuple[str, ...] = ()) -> int:
    """Bytes that blocks in flight hold in a process: one is read, one predicted, one written."""
    maps = 2 + ("probability" in outputs) * n_classes + ("uncertainty" in outputs)
    ahead = maps * grid.axes[0].step * math.prod(grid.block[1:])  # answers to rows below the block
    return IN_HAND * maps * math.prod(grid.block) + ahead + _placed_bytes(source, grid, n_classes, outputs)


def _placed_bytes(source: Source, grid: Grid, n_classes: int, outputs: tuple[str, ...]) -> int:
    """Those of them that lie on the device: raw pixels of two blocks, and sums of scores."""
    reach = math.prod(min(e, b + t) for e, b, t in zip(grid.shape, grid.block, grid.tile, strict=True))
    raw = reach * source.channels * source.dtype.itemsize
    # Sums of scores, and of weights where shares are made of them.
    strip = Box(grid.area.start, (grid.area.stop[0], *grid.block_box(0).stop[1:]))
    sums = 4 * (n_classes + bool(outputs)) * held_pixels(grid, strip)
    row = math.prod(grid.block[1:])
    slab = (16 + 12 * n_classes * bool(outputs)) * min(max(SLAB, row), grid.tile[0] * row)
    return IN_HAND * raw + sums + slab


def _batch_bytes(predict: Predict, tile: tuple[int, ...]) -> int:
    """Bytes of the scores of a batch."""
    return fitting_batch(predict, tile) * 4 * len(predict.classes) * math.prod(tile)


def choose_block(
    source: Source,
    predict: Predict,
    tile: tuple[int, ...],
    overlap: float,
    memory: int,
    *,
    area: Area,
    outputs: tuple[str, ...] = (),
) -> Grid:
    """The grid with the largest blocks that fit `memory` bytes.

    The block does not grow with the image, nor then does the memory that a run takes.

    Raises:
        InputError: where no block fits, naming the memory that would do, or tiles overlap too much.
    """
    shape = source.space.shape
    check_overlap(Grid.regular(shape, tile, overlap, area=area.box))
    # Where the device has memory of its own, scores lie there.
    scores = 0 if predict.peak_memory() else (AHEAD + 1) * _batch_bytes(predict, tile)
    parted = partial(Grid.regular, shape, tile, overlap, area=area.box)
    chunk, (down, *across) = CHUNK[len(shape)], _sides(parted)
    for eighths in range(8 * max(1, memory // _MEMORY), 0, -1):
        sides = (down * min(eighths, 8), *(side * eighths for side in across))
        block = tuple(
            whole if eighths >= 8 and whole <= side / 8 * _WHOLE else max(chunk, side // 8 // chunk * chunk)
            for side, whole in zip(sides, area.box.shape, strict=True)
        )
        grid = parted(block=block)
        need = BASE + scores + block_bytes(source, grid, len(predict.classes), outputs)
        if need <= memory:
            return grid
    least = math.ceil(need / 2**20)
    raise InputError(
        f"{source.uri} needs {least} MiB a process with tiles of {' x '.join(map(str, tile))}, "
        f"more than --memory {memory // 2**20}MiB; pass --memory {least}MiB or a smaller --tile"
    )


def _sides(parted: Callable[..., Grid]) -> tuple[int, ...]:
    """Sides of a block at the default memory, of an area that `parted(block=...)` parts into blocks."""
    whole = parted()
    if len(whole.shape) == 2:
        return _BLOCK[2][0], max(_BLOCK[2][1], _TILES * whole.tile[1])
    down, *across = _BLOCK[3]
    most = (1 + _TWICE) * whole.n_tiles
    while across[-1] < whole.block[-1] and parted(block=(down, *across)).n_tiles > most:
        across[-1] += CHUNK[3]
    return down, *across


def check_room(folder: Path, needed: int, instead: str = "choose another output folder") -> None:
    """Refuses a disk that cannot hold the results.

    Args:
        instead: what to do where no space can be freed.

    Raises:
        InputError: with what is free and what is needed.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{folder} has {free / 2**20:.1f} MiB free, the results may take {needed / 2**20:.1f} MiB; "
            f"free some space or {instead}"
        )
