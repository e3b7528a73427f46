"""Results as the files that GIS and radiology tools open."""

from __future__ import annotations

from tiling.address import Address, address_of
from tiling.checks import difference
from tiling.damage import check_finished, unchanged
from tiling.errors import InputError, OutputError
from tiling.extras import require
from tiling.ownership import Owner
from tiling.store import Store


def export(store: Store, out: str | Address, name: str = "labels", *, overwrite: bool = False) -> list[Address]:
    """Writes one of a store's arrays; the ending of `out` picks the format.

    Args:
        out: `.tif` or `.tiff` (rasters), `.nii` or `.nii.gz` (volumes).
        name: `labels`, `probability` or `uncertainty`.
        overwrite: replace files that are not what this run wrote; its source is never replaced.

    Returns:
        Every file written, `out` first.

    Raises:
        InputError: where the ending, the array or the size does not fit, a file may not be replaced, or there is no
            room.
        DamageError: where a block is no longer what was written.
        OutputError: where what was written is not what the store holds, or that changed meanwhile.
        ConnectionError: where object storage does not answer.
    """
    out = address_of(out)
    if name != "labels" and name not in store.outputs:
        raise InputError(f"{store.path} holds no {name}; run lmseg segment with --{name}")
    ledger = check_finished(store, [name])
    raster = store.space.ndim == 2
    if raster and out.name.lower().endswith((".tif", ".tiff")):
        from tiling.formats.cog import write_cog

        write = write_cog
    elif not raster and out.name.lower().endswith((".nii", ".nii.gz")):
        require("volumes", "NIfTI volumes")
        from tiling.formats.nifti import write_nifti

        write = write_nifti
    else:
        endings = ".tif" if raster else ".nii or .nii.gz"
        raise InputError(f"{out} has an ending that {store.path} cannot be written to; use {endings}")
    owner = Owner(address_of(store.path), (store.uri,), overwrite)
    owner.check(file_names(out, name))
    with owner.publish(out) as folder, unchanged(store, ledger):
        staged = write(store, folder / out.name, name)
        if name == "labels" and (problem := difference(store, staged[0])) is not None:
            raise OutputError(f"{out} was written wrongly: it {problem}; nothing is left of it")
    return [out.with_name(file.name) for file in staged]


def file_names(out: Address, name: str) -> list[Address]:
    """Every file that an export of `name` to `out` may write, `out` first."""
    stem = out.name
    if name != "labels":
        return [out]
    if stem.lower().endswith((".tif", ".tiff")):
        return [out, out.with_name(f"{stem}.aux.xml")]
    stem = stem.removesuffix(".gz").removesuffix(".nii")
    return [out, out.with_name(f"{stem}.label"), out.with_name(f"{stem}.ctbl")]
