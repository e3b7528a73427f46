"""Results as the files that GIS and radiology tools open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiling.address import Address, address_of
from tiling.checks import difference
from tiling.errors import InputError, OutputError
from tiling.heap import give_back
from tiling.place import place_of
from tiling.store import Store


def export(store: Store, out: str | Address, name: str = "labels") -> list[Address]:
    """Writes one of a store's arrays; the ending of `out` picks the format.

    Args:
        out: `.tif` or `.tiff` (rasters), `.nii` or `.nii.gz` (volumes).
        name: `labels`, `probability` or `uncertainty`.

    Returns:
        Every file written, `out` first.

    Raises:
        InputError: where the ending, the array or the size does not fit, or there is no room.
        OutputError: where what was written is not what the store holds.
        ConnectionError: where object storage does not answer.
    """
    out = address_of(out)
    if name != "labels" and name not in store.outputs:
        raise InputError(f"{store.path} holds no {name}; run lmseg segment with --{name}")
    if (pending := len(store.pending())) > 0:
        raise InputError(f"{store.path} still lacks {pending} of {store.grid.n_blocks} blocks; run lmseg segment again")
    raster = store.space.ndim == 2
    if raster and out.name.lower().endswith((".tif", ".tiff")):
        from tiling.formats.cog import write_cog

        write = write_cog
    elif not raster and out.name.lower().endswith((".nii", ".nii.gz")):
        from tiling.formats.nifti import write_nifti

        write = write_nifti
    else:
        endings = ".tif" if raster else ".nii or .nii.gz"
        raise InputError(f"{out} has an ending that {store.path} cannot be written to; use {endings}")
    with whole(out) as folder:
        staged = write(store, folder / out.name, name)
        if name == "labels" and (problem := difference(store, staged[0])) is not None:
            raise OutputError(f"{out} was written wrongly: it {problem}; nothing is left of it")
    return [out.with_name(file.name) for file in staged]


@contextmanager
def whole(out: Address) -> Iterator[Path]:
    """A folder to make `out` in; what is in it at the end takes its place, `out` last. Nothing does after an error.

    Raises:
        InputError: where there is no room or no right to write.
        ConnectionError: where object storage does not answer.
    """
    place = place_of(out.parent)
    try:
        with place.staging(out.name) as folder:
            yield folder
            for file in sorted(folder.iterdir(), key=lambda f: f.name == out.name):
                place.take(file)
    except ConnectionError:
        raise
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another folder or free some space") from error
    finally:
        give_back()
