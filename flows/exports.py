"""Which files a run leaves beside its store."""

from __future__ import annotations

import tiling
from tiling import Store
from tiling.address import Address, address_of
from tiling.place import place_of

_LABELS = {2: "_labels.tif", 3: "_seg.nii.gz"}
_OTHERS = {
    2: {"probability": "_prob.tif", "uncertainty": "_uncertainty.tif"},
    3: {"probability": "_prob.nii.gz", "uncertainty": "_uncertainty.nii.gz"},
}


def beside(run: str | Address, ending: str) -> Address:
    """The file of a run that has this ending: `out/a_labels.tif` beside `out/a.zarr`."""
    run = address_of(run)
    return run.with_name(f"{run.stem}{ending}")


def export_all(store: Store) -> list[Address]:
    """Writes every map of a finished store, and says which files there are now."""
    ndim = store.space.ndim
    endings = {"labels": _LABELS[ndim], **_OTHERS[ndim]}
    return [
        file
        for name in ("labels", *store.outputs)
        for file in tiling.export(store, beside(store.path, endings[name]), name)
    ]


def exports_of(run: str | Address) -> list[Address]:
    """The label maps that `export_all` wrote beside a store."""
    return [f for ending in _LABELS.values() if place_of(f := beside(run, ending)).exists()]
