"""NIfTI-1 label maps."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from tiling.answer import SCALE
from tiling.box import Box
from tiling.classes import ClassTable
from tiling.errors import InputError
from tiling.space import Space
from tiling.store import Store

_SLAB = 64
_LONGEST = 32767
_LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL
_MM = 2  # NIFTI_UNITS_MM


def write_nifti(store: Store, out: Path, name: str) -> list[Path]:
    """Writes labels, probability (4D, a class a volume) or uncertainty, slab by slab.

    The header is new: a source's would carry its data type and the patient's text along. Only its placement is copied.

    Returns:
        `out` and, for labels, the class tables of ITK-SNAP (`.label`) and 3D Slicer (`.ctbl`).

    Raises:
        InputError: where a side is longer than NIfTI-1 can say.
    """
    space = store.out_space
    check_length(space.shape, out)
    ahead = [(channel,) for channel in range(len(store.classes))] if name == "probability" else [()]
    array = store.array(name)
    _write(
        _header(store, space, name),
        out,
        (np.asarray(array[(*channel, *box.slices)]) for channel in ahead for box in _slabs(space)),
    )
    return [out, *_side_files(out, store.classes)] if name == "labels" else [out]


def write_marks(store: Store, out: Path, read: Callable[[Box], NDArray[np.uint8]]) -> None:
    """Writes a uint8 map placed like the label map, slab by slab.

    Args:
        read: gives a box of it, in indices of the area.
    """
    header = _header(store, store.out_space, "labels")
    header.set_data_dtype(np.uint8)
    header["cal_max"] = 0  # viewers then look for themselves
    _write(header, out, (read(box) for box in _slabs(store.out_space)))


def check_length(shape: tuple[int, ...], name: str | Path) -> None:
    """Refuses a volume whose sides NIfTI-1, with its 16-bit dimensions, cannot hold."""
    if max(shape) > _LONGEST:
        raise InputError(
            f"{name} would have a side of {max(shape)}, NIfTI-1 holds {_LONGEST}; segment a part with --box"
        )


def _slabs(space: Space) -> Iterator[Box]:
    return Box.whole(space.shape).split((_SLAB, *space.shape[1:]))


def _write(header: Any, out: Path, slabs: Iterable[NDArray[Any]]) -> None:
    with _binary(out) as stream:
        header.write_to(stream)
        stream.write(b"\0" * (int(header["vox_offset"]) - stream.tell()))
        # Zarr's (z, y, x) in C order is NIfTI's (x, y, z) in Fortran order: the bytes are the same.
        for slab in slabs:
            stream.write(np.ascontiguousarray(slab).data)


def _header(store: Store, space: Space, name: str) -> Any:
    header = nibabel.Nifti1Header()
    shape = space.shape[::-1]
    header.set_data_shape((*shape, len(store.classes)) if name == "probability" else shape)
    header.set_data_dtype(store.array(name).dtype)
    forms = space.forms
    if forms is None:
        header.set_sform(np.array([*space.affine, (0, 0, 0, 1)]), code=1)
        header.set_qform(np.array([*space.affine, (0, 0, 0, 1)]), code=1)
    else:
        header["pixdim"][:4] = forms.pixdim
        header["qform_code"], header["sform_code"] = forms.qform_code, forms.sform_code
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = forms.quatern
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = forms.qoffset
        for axis, row in zip("xyz", forms.sform, strict=True):
            header[f"srow_{axis}"] = row
    header["xyzt_units"] = _MM if forms is None else forms.units
    if name == "labels":
        header.set_intent(_LABEL_INTENT, name="labels")
        header["cal_max"] = max(store.classes.values)
    else:
        header.set_slope_inter(1 / SCALE, 0)
        header["descrip"] = b"scaled 1/254; 255 is no data"
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header


@contextmanager
def _binary(out: Path) -> Iterator[IO[bytes]]:
    if out.name.lower().endswith(".gz"):
        # Label maps are long runs: the fastest level is within a few per cent of the smallest file.
        with out.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as stream:
            yield stream  # type: ignore[misc]  # GzipFile is an IO[bytes] in all but name
    else:
        with out.open("wb") as stream:
            yield stream


def _side_files(out: Path, classes: ClassTable) -> list[Path]:
    stem = out.name.removesuffix(".gz").removesuffix(".nii")
    snap, slicer = out.with_name(f"{stem}.label"), out.with_name(f"{stem}.ctbl")
    rows = [(c.value, c.rgb, 0 if c.value == 0 else 1, c.name) for c in classes]
    snap.write_text(
        "# ITK-SNAP label description: index, R, G, B, alpha, visible, mesh, name\n"
        + "".join(f'{v} {r} {g} {b} {shown} {shown} {shown} "{n}"\n' for v, (r, g, b), shown, n in rows),
        encoding="utf-8",
    )
    slicer.write_text(
        "# 3D Slicer colour table: index, name, R, G, B, A\n"
        + "".join(f"{v} {n.replace(' ', '_')} {r} {g} {b} {255 * shown}\n" for v, (r, g, b), shown, n in rows),
        encoding="utf-8",
    )
    return [snap, slicer]
