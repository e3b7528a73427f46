"""Volumes, through nibabel."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from tiling.box import Box
from tiling.errors import InputError
from tiling.sources import Part, Pixels, all_valid, common_dtype, mask_nonfinite
from tiling.sources.fingerprint import Check, LocalFiles, check_unchanged
from tiling.space import Forms, Space

_SLAB = 8 * 2**20  # bytes decoded at once


@dataclass(frozen=True, slots=True)
class VolumeSource:
    """A 3D NIfTI file, read by slabs of whole planes; arrays are (z, y, x), the file's order reversed."""

    uri: str
    space: Space
    dtype: np.dtype[Any]
    fingerprint: str
    local: LocalFiles

    @property
    def channels(self) -> int:
        return 1

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part(self.uri, 1),)

    def read(self, box: Box) -> Pixels:
        """The box's voxels, scaled by the header's slope and intercept."""
        values = np.empty((1, *box.shape), self.dtype)
        self.read_into(values[0], box)
        return mask_nonfinite(values, all_valid(box.shape))

    def read_into(self, values: NDArray[Any], box: Box) -> None:
        """Fills `values`, the shape of the box and of a type that holds the volume's, with the box's voxels."""
        proxy = _image(self.uri, self.fingerprint).dataobj
        (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
        plane = self.space.shape[1] * self.space.shape[2] * max(4, self.dtype.itemsize)
        step = max(1, _SLAB // plane)
        try:
            for z in range(z0, z1, step):
                stop = min(z + step, z1)
                # Whole planes lie in one piece; picking rows would mean a seek each.
                slab = np.asarray(proxy[:, :, z:stop] if len(proxy.shape) == 3 else proxy[:, :, z:stop, 0])
                values[z - z0 : stop - z0] = slab[x0:x1, y0:y1].T
        except (OSError, EOFError, ValueError, zlib.error) as error:
            check_unchanged(self.uri, self.local)
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.uri} cannot be read at planes {z0}..{z1}: {reason}; fetch or write the file again"
            ) from error
        # After reading: had the file changed before or meanwhile, it would show.
        check_unchanged(self.uri, self.local)


@lru_cache(maxsize=16)  # more than the sequences of one case
def _image(path: str, fingerprint: str) -> Any:
    # Kept open: indexed_gzip remembers its seek points, so a later slab need not start from the first byte.
    return nibabel.load(path)


def open_volume(path: str, form: str | None = None, check: Check = "auto") -> VolumeSource:
    """A `.nii` or `.nii.gz` file.

    Args:
        form: which of `sform` and `qform` to trust; needed only where they disagree.
        check: how much of the file is read for the fingerprint; see `tiling.sources.fingerprint`.

    Raises:
        InputError: where the file is missing, damaged, not 3D, or its two forms disagree.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; check the path")
    try:
        image: Any = nibabel.load(path)
    except (
        ImageFileError,
        HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
        struct.error,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be opened as NIfTI: {reason}; give a .nii or .nii.gz file") from error
    header = image.header
    shape = image.shape[:3] if image.shape[3:] == (1,) else image.shape
    if len(shape) != 3:
        raise InputError(
            f"{path} has {len(shape)} dimensions {shape}; give one 3D volume (fslsplit or nib-split cuts it)"
        )
    if 0 in shape:
        raise InputError(f"{path} has shape {shape}, which holds no voxels; give a volume with voxels")
    dtype = image.get_data_dtype()
    if dtype.kind not in "uif":
        raise InputError(f"{path} holds {dtype} voxels; give a grey-value volume")
    _check_complete(path, header, int(np.prod(image.shape)) * dtype.itemsize)
    # The header of a loaded image forgets its scale; the array it reads through does not.
    scaled = (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0)
    local = LocalFiles.of([path], check)
    return VolumeSource(
        path,
        Space(tuple(shape[::-1]), _affine(path, header, form), forms=_forms(header)),
        np.dtype("float32") if scaled else common_dtype(dtype),
        local.fingerprint(form),
        local,
    )


def _affine(path: str, header: Any, form: str | None) -> tuple[tuple[float, ...], ...]:
    qcode, scode = int(header["qform_code"]), int(header["sform_code"])
    if qcode and scode and form is None:
        q, s = header.get_qform(), header.get_sform()
        # A tenth of a voxel at the far corner is rounding; more is another place.
        far = np.array([*header.get_data_shape()[:3], 1])
        apart = np.abs((q - s) @ np.stack([far, far * [0, 0, 0, 1]], axis=1)).max()
        apart = max(apart, float(np.abs((q - s)[:3, :3] * far[:3]).max()))
        if apart > 0.1 * min(header.get_zooms()[:3]):
            raise InputError(
                f"{path} has a qform and an sform {apart:.3g} mm apart; choose with --form sform or --form qform"
            )
    if (form == "qform" and not qcode) or (form == "sform" and not scode):
        raise InputError(f"{path} has no {form} (its code is 0); choose the other with --form")
    matrix = header.get_qform() if form == "qform" else header.get_best_affine()
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise InputError(f"{path} has an affine that cannot be inverted; repair its header")
    return tuple(tuple(float(v) * millimetres(header) for v in row) for row in matrix[:3])


def millimetres(header: Any) -> float:
    """Length of a NIfTI file's spatial unit; an unknown one counts as a millimetre."""
    return {1: 1000.0, 3: 0.001}.get(_units(header), 1.0)


def _units(header: Any) -> int:
    """NIfTI's code of the spatial unit: 0 unknown, 1 metre, 2 millimetre, 3 micron."""
    return int(header["xyzt_units"]) & 7


def _forms(header: Any) -> Forms:
    return Forms(
        int(header["qform_code"]),
        int(header["sform_code"]),
        tuple(float(v) for v in header["pixdim"][:4]),  # type: ignore[arg-type]  # four of them
        (float(header["quatern_b"]), float(header["quatern_c"]), float(header["quatern_d"])),
        (float(header["qoffset_x"]), float(header["qoffset_y"]), float(header["qoffset_z"])),
        tuple(tuple(float(v) for v in header[f"srow_{axis}"]) for axis in "xyz"),  # type: ignore[arg-type]  # three
        _units(header),
    )


def _check_complete(path: str, header: Any, n_bytes: int) -> None:
    """Refuses a file that ends before its voxels do."""
    expected = int(header.get_data_offset()) + n_bytes
    actual = os.path.getsize(path)
    if path.lower().endswith(".gz"):
        with open(path, "rb") as stream:
            stream.seek(-4, os.SEEK_END)
            (tail,) = struct.unpack("<I", stream.read(4))
        if tail == expected % 2**32:  # gzip ends with the length of its last member, and most have one
            return
        actual = 0
        try:
            with gzip.open(path) as unpacked:
                while piece := unpacked.read(2**22):
                    actual += len(piece)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(f"{path} is truncated or damaged after {actual} bytes: {error}; fetch it again") from error
    if actual < expected:
        raise InputError(f"{path} is truncated: {actual} of {expected} bytes; fetch it again")
