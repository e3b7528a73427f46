"""Results as the files that GIS and radiology tools open."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiling.errors import InputError
from tiling.store import Store


def export(store: Store, out: str | Path, name: str = "labels") -> list[Path]:
    """Writes one of a store's arrays; the ending of `out` picks the format.

    Args:
        out: `.tif` or `.tiff` (rasters), `.nii` or `.nii.gz` (volumes).
        name: `labels`, `probability` or `uncertainty`.

    Returns:
        Every file written, `out` first.

    Raises:
        InputError: where the ending, the array or the size does not fit, or there is no room.
    """
    out = Path(out)
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
    try:
        with _staging(out) as folder:
            staged = write(store, folder / out.name, name)
            files = [out.parent / f.name for f in staged]
            # The image last: where it is, its side files are.
            for file in reversed(staged):
                file.replace(out.parent / file.name)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another folder or free some space") from error
    return files


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone afterwards: a file appears under its name whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
