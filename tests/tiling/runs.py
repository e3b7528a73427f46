"""Whole runs, and what they leave to compare."""

from __future__ import annotations

import numpy as np

import tiling
from tiling import ArraySource, Box, Grid
from tiling.store import Store

EVERYTHING = ("probability", "uncertainty")


def one_hot(labels: np.ndarray, n: int) -> np.ndarray:
    return (labels == np.arange(n).reshape(-1, *(1,) * labels.ndim)).astype(np.uint8)


def image_of(shape, seed=0, bands=2) -> ArraySource:
    return ArraySource(np.random.default_rng(seed).integers(0, 256, (bands, *shape)).astype(np.uint8))


def run(source, grid, predict, folder, *, executor=None, name="run.zarr", **options) -> Store:
    store = tiling.create(f"{folder}/{name}", source, grid, predict, **options)
    tiling.segment(source, predict, store, executor=executor)
    assert store.pending() == []
    return store


def maps(store: Store) -> dict[str, np.ndarray]:
    whole = Box.whole(store.area.box.shape)
    return {name: store.read(whole, name) for name in ("labels", *store.outputs)}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def again(grid: Grid, block, area: Box | None = None) -> Grid:
    """The same tiles in other blocks, over another area."""
    area = area or grid.area
    return Grid(
        tuple(
            tiling.Axis(a.extent, a.tile, a.step, b, start, stop)
            for a, b, start, stop in zip(grid.axes, block, area.start, area.stop, strict=True)
        )
    )
