"""Which files a run leaves beside its store."""

from __future__ import annotations

from collections.abc import Iterable

import tiling
from tiling import Store
from tiling.address import Address, address_of
from tiling.formats import file_names
from tiling.place import place_of

_LABELS = {2: "_labels.tif", 3: "_seg.nii.gz"}
_OTHERS = {
    2: {"probability": "_prob.tif", "uncertainty": "_uncertainty.tif"},
    3: {"probability": "_prob.nii.gz", "uncertainty": "_uncertainty.nii.gz"},
}
PREVIEW, REPORT = "_preview.png", ".run.json"
SEAMS = {2: "_seams.geojson", 3: "_seams.nii.gz"}


def beside(run: str | Address, ending: str) -> Address:
    """The file of a run that has this ending: `out/a_labels.tif` beside `out/a.zarr`."""
    run = address_of(run)
    return run.with_name(f"{run.stem}{ending}")


def export_all(store: Store, overwrite: bool = False) -> list[Address]:
    """Writes every map of a finished store, and says which files there are now."""
    endings = _endings(store.space.ndim)
    return [
        file
        for name in ("labels", *store.outputs)
        for file in tiling.export(store, beside(store.path, endings[name]), name, overwrite=overwrite)
    ]


def files_of(run: str | Address, ndim: int, outputs: Iterable[str]) -> list[Address]:
    """Every file that a run with these outputs writes beside its store."""
    endings = _endings(ndim)
    maps = [file for name in ("labels", *outputs) for file in file_names(beside(run, endings[name]), name)]
    return [*maps, beside(run, PREVIEW), beside(run, REPORT)]


def all_files_of(run: str | Address, ndim: int) -> list[Address]:
    """Every file that a run may have left beside its store, by now or earlier."""
    return [*files_of(run, ndim, _OTHERS[ndim]), beside(run, SEAMS[ndim])]


def _endings(ndim: int) -> dict[str, str]:
    return {"labels": _LABELS[ndim], **_OTHERS[ndim]}


def exports_of(run: str | Address) -> list[Address]:
    """The label maps that `export_all` wrote beside a store."""
    return [f for ending in _LABELS.values() if place_of(f := beside(run, ending)).exists()]
