"""How the arrays of a run lie on disk: chunks and shards that no two blocks share, and where GDAL finds the place."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from tiling.classes import ClassTable
from tiling.grid import Grid
from tiling.record import row_type
from tiling.space import Space

CHUNK = {2: 512, 3: 64}
_SHARD = 4  # chunks a side, in 3D: GDAL before 3.13 cannot open sharded rasters
# With zstd's own checksum, which every reader compares as it decodes. GDAL would not open arrays with a crc32c codec.
_COMPRESSOR = ZstdCodec(level=0, checksum=True)


def make_arrays(path: Path, space: Space, grid: Grid, table: ClassTable, outputs: tuple[str, ...]) -> None:
    """Makes the group and its empty arrays.

    Args:
        space: of the whole image.
        outputs: maps besides the labels.
    """
    shape = grid.area.shape
    chunk = _chunk(grid)
    names = ("y", "x") if len(shape) == 2 else ("z", "y", "x")
    # A shard must be written by one task: it may not reach into the next block.
    shard = _shard(grid, chunk) if len(shape) == 3 else None
    group = zarr.create_group(path)
    group.create_array(
        "labels",
        shape=shape,
        dtype=table.dtype,
        chunks=chunk,
        shards=shard,
        fill_value=table.nodata,
        compressors=_COMPRESSOR,
        dimension_names=names,
    )
    if "probability" in outputs:
        group.create_array(
            "probability",
            shape=(len(table), *shape),
            dtype="uint8",
            chunks=(1, *chunk),
            shards=None if shard is None else (1, *shard),
            fill_value=255,
            compressors=_COMPRESSOR,
            dimension_names=("class", *names),
        )
    if "uncertainty" in outputs:
        group.create_array(
            "uncertainty",
            shape=shape,
            dtype="uint8",
            chunks=chunk,
            shards=shard,
            fill_value=255,
            compressors=_COMPRESSOR,
            dimension_names=names,
        )
    # A file a row, which holds its bytes and nothing else.
    size = row_type(len(table), 1 + len(outputs)).itemsize
    group.create_array(
        "record", shape=(grid.n_blocks, size), dtype="uint8", chunks=(1, size), compressors=None, fill_value=0
    )
    if len(shape) == 2:
        _write_gdal_georeference(group, space.crop(grid.area))


def _write_gdal_georeference(group: zarr.Group, space: Space) -> None:
    """What GDAL's Zarr driver reads: `_CRS`, and the transform from coordinates of pixel centres."""
    (a, b, c), (d, e, f) = space.affine
    if space.crs:
        group["labels"].attrs["_CRS"] = {"wkt": space.crs}
    if b == 0 and d == 0:
        for name, origin, step, n in (("x", c, a, space.shape[1]), ("y", f, e, space.shape[0])):
            centres = origin + step * (np.arange(n) + 0.5)
            group.create_array(name, data=centres, chunks=(n,), compressors=_COMPRESSOR, dimension_names=(name,))


def _chunk(grid: Grid) -> tuple[int, ...]:
    """The largest chunk up to the customary one that no two blocks share."""
    chunk = []
    for axis in grid.axes:
        most = min(CHUNK[len(grid.axes)], axis.block)
        alone = axis.blocks == 1
        chunk.append(most if alone else next(c for c in range(most, 0, -1) if axis.block % c == 0))
    return tuple(chunk)


def _shard(grid: Grid, chunk: tuple[int, ...]) -> tuple[int, ...]:
    """The largest number of chunks up to four a side that fills a block evenly."""
    shard = []
    for axis, c in zip(grid.axes, chunk, strict=True):
        chunks = math.ceil(axis.block / c)
        shard.append(c * next(n for n in range(_SHARD, 0, -1) if axis.blocks == 1 or chunks % n == 0))
    return tuple(shard)
