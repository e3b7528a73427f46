"""One Zarr v3 group a run: the label map, what else was asked for, and a record of what is done.

`labels` (*S), on request `probability` (K, *S) and `uncertainty` (*S), `counts` (blocks, K + 3), `seconds`
(blocks, 4) and `manifest` (blocks, 32): the digest of everything a block's answer depends on, written last. A block is
pending while its digest differs; that is the whole of resuming.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from tiling.area import Area
from tiling.box import Box
from tiling.classes import ClassTable
from tiling.errors import InputError
from tiling.grid import Axis, Grid
from tiling.predict import Predict
from tiling.sources import Source
from tiling.space import Space

# Goes up when the same input, model and settings would give another answer.
ENGINE = 1
CHUNK = {2: 512, 3: 64}
_SHARD = 4  # chunks a side, in 3D: GDAL before 3.13 cannot open sharded rasters
STEPS = ("read", "wait", "predict", "write")
SCALE = 254  # uint8 value of probability 1; 255 is nodata


class Answer(NamedTuple):
    """A block's result: labels (*S); probability uint8 (K, *S) and uncertainty uint8 (*S) where asked for."""

    labels: NDArray[Any]
    probability: NDArray[np.uint8] | None
    uncertainty: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Store:
    """A run on disk. Small and picklable: it holds a path and what the group's attributes say."""

    path: str
    uri: str
    space: Space
    area: Area
    grid: Grid
    classes: ClassTable
    outputs: tuple[str, ...]
    identity: str

    @property
    def out_space(self) -> Space:
        """The placement of the label map: the area's part of the image."""
        return self.space.crop(self.area.box)

    @property
    def group(self) -> zarr.Group:
        return _group(self.path)

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the group's arrays."""
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    def digest(self, block: Box) -> bytes:
        """What the answer of a block depends on, as 32 bytes."""
        return hashlib.sha256(f"{self.identity} {block}".encode()).digest()

    def write(self, number: int, answer: Answer) -> None:
        """Stores a block's answer. Nobody else writes its chunks, so a second time does no harm."""
        block = self.grid.block_box(number)
        here = block.relative(self.area.box.start).slices
        self.array("labels")[here] = answer.labels
        if answer.probability is not None:
            self.array("probability")[(slice(None), *here)] = answer.probability
        if answer.uncertainty is not None:
            self.array("uncertainty")[here] = answer.uncertainty

    def record(self, number: int, counts: Sequence[int], seconds: Sequence[float]) -> None:
        """Marks a block as done.

        Args:
            counts: (K + 3): pixels of each class, without an answer, and not finite; tiles predicted.
            seconds: (4): spent in each of `STEPS`.
        """
        self.array("counts")[number] = np.array(counts, np.int64)
        self.array("seconds")[number] = np.array(seconds)
        self.array("manifest")[number] = np.frombuffer(self.digest(self.grid.block_box(number)), np.uint8)

    def pending(self) -> list[int]:
        """Numbers of the blocks that are not done."""
        done = np.asarray(self.array("manifest")[:])
        return [i for i, box in enumerate(self.grid.blocks()) if done[i].tobytes() != self.digest(box)]

    def counts(self) -> NDArray[np.int64]:
        """(blocks, K + 3): pixels of each class, without an answer, and not finite; tiles predicted."""
        return np.asarray(self.array("counts")[:], np.int64)

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each step, over all blocks and workers."""
        return dict(zip(STEPS, np.asarray(self.array("seconds")[:]).sum(axis=0).tolist(), strict=True))

    def read(self, box: Box, name: str = "labels") -> NDArray[Any]:
        """Part of an array, in indices of the area."""
        index = (slice(None), *box.slices) if name == "probability" else box.slices
        return np.asarray(self.array(name)[index])


def create(
    path: str | Path,
    source: Source,
    grid: Grid,
    predict: Predict,
    *,
    area: Area | None = None,
    outputs: tuple[str, ...] = (),
) -> Store:
    """The store of a run: a new one, or the one of an earlier run of the same thing, with that run's blocks.

    Args:
        path: a folder, by custom ending in .zarr.
        area: what is wanted; all of the image by default. Its box is the grid's area.
        outputs: `probability` and `uncertainty` on request.

    Raises:
        InputError: where the path holds another run, something else, or cannot be written.
    """
    area = area or Area(grid.area)
    assert area.box == grid.area, "the grid's blocks must part the area"
    words = {
        "source": source.fingerprint,
        "model": predict.digest,
        "tiles": [[a.extent, a.tile, a.step] for a in grid.axes],
        "area": area.to_json(),
        "outputs": sorted(outputs),
        "engine": ENGINE,
    }
    made_from = {name: hashlib.sha256(json.dumps(word).encode()).hexdigest() for name, word in words.items()}
    path = Path(path)
    if path.exists() and any(path.iterdir() if path.is_dir() else (path,)):
        attributes = _attributes(path)
        if attributes is None:
            raise InputError(f"{path} exists and is no store of a run; move it or choose another output folder")
        other = [name for name, digest in made_from.items() if attributes["made_from"].get(name) != digest]
        if other:
            raise InputError(
                f"{path} was made with another {' and '.join(other)}; "
                "pass --fresh to replace it, or choose another output folder"
            )
        return open_store(path)
    table = ClassTable.of(predict.classes)
    # Made under another name: a run that is killed meanwhile leaves no store that is half there.
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        _make(part, source.space, grid, table, outputs)
        zarr.open_group(part, mode="r+").attrs["lmseg"] = {
            "uri": source.uri,
            "space": source.space.to_json(),
            "area": area.to_json(),
            "grid": [[a.extent, a.tile, a.step, a.block, a.start, a.stop] for a in grid.axes],
            "classes": table.to_json(),
            "outputs": list(outputs),
            "made_from": made_from,
        }
        part.replace(path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"{path} cannot be written: {error.strerror}; choose another output folder") from error
    return open_store(path)


def open_store(path: str | Path) -> Store:
    """The store of an earlier run.

    Raises:
        InputError: where there is none.
    """
    attributes = _attributes(Path(path))
    if attributes is None:
        raise InputError(f"{path} is no store of a run; give the .zarr folder that lmseg segment wrote")
    return Store(
        os.path.abspath(path),
        attributes["uri"],
        Space.from_json(attributes["space"]),
        Area.from_json(attributes["area"]),
        Grid(tuple(Axis(*a) for a in attributes["grid"])),
        ClassTable.from_json(attributes["classes"]),
        tuple(attributes["outputs"]),
        json.dumps(attributes["made_from"], sort_keys=True),
    )


def remove(path: str | Path) -> None:
    """Deletes a store, and only a store; nothing happens where there is none.

    Raises:
        InputError: where the folder holds something else.
    """
    path = Path(path)
    if not path.exists():
        return
    if _attributes(path) is None and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is no store of a run and is left alone; move it or choose another output folder")
    shutil.rmtree(path)
    _group.cache_clear()


def _make(path: Path, space: Space, grid: Grid, table: ClassTable, outputs: tuple[str, ...]) -> None:
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
            dimension_names=names,
        )
    width = len(table) + 3
    group.create_array("counts", shape=(grid.n_blocks, width), dtype="int64", chunks=(1, width), fill_value=0)
    group.create_array("seconds", shape=(grid.n_blocks, 4), dtype="float64", chunks=(1, 4), fill_value=0)
    group.create_array("manifest", shape=(grid.n_blocks, 32), dtype="uint8", chunks=(1, 32), fill_value=0)
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
            group.create_array(name, data=centres, chunks=(n,), dimension_names=(name,))


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


@lru_cache(maxsize=8)
def _group(path: str) -> zarr.Group:
    return zarr.open_group(path, mode="r+")


def _attributes(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads((path / "zarr.json").read_text())["attributes"]["lmseg"]  # type: ignore[no-any-return]  # JSON
    except (OSError, KeyError, TypeError, ValueError):
        return None
