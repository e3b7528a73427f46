"""Several volumes on one grid, such as the sequences of one examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tiling.box import Box
from tiling.errors import InputError
from tiling.sources import MISSING, Part, Pixels, all_valid, common_dtype, mask_nonfinite, split
from tiling.sources.fingerprint import Check, LocalFiles
from tiling.sources.volume import VolumeSource, open_volume
from tiling.space import Space

# Millimetres that corners may lie apart: what headers in float32 round by.
_NEAR = 1e-3


@dataclass(frozen=True, slots=True)
class VolumesSource:
    """NIfTI files as one volume, a channel each.

    Attributes:
        volumes: those that are there.
        parts: those and the missing ones, in the order of the name.
    """

    uri: str
    volumes: tuple[VolumeSource, ...]
    parts: tuple[Part, ...]
    dtype: np.dtype[Any]
    fingerprint: str

    @property
    def space(self) -> Space:
        return self.volumes[0].space

    @property
    def channels(self) -> int:
        return len(self.volumes)

    def read(self, box: Box) -> Pixels:
        """The box's voxels; one that is not finite in some file is missing."""
        values = np.empty((self.channels, *box.shape), self.dtype)
        for channel, volume in zip(values, self.volumes, strict=True):
            volume.read_into(channel, box)
        return mask_nonfinite(values, all_valid(box.shape))


def open_volumes(uri: str, form: str | None = None, check: Check = "auto") -> VolumesSource:
    """NIfTI files joined by commas, `-` for one that is missing; at least one is there.

    Args:
        form: which of `sform` and `qform` to trust in all of them.
        check: how much of the files is read for the fingerprint; see `tiling.sources.fingerprint`.

    Raises:
        InputError: where one cannot be opened, or they do not lie voxel on voxel.
    """
    files = split(uri)
    volumes = tuple(open_volume(file, form, check) for file in files if file != MISSING)
    for volume in volumes[1:]:
        _check_same_grid(volumes[0], volume)
    local = LocalFiles.of([volume.uri for volume in volumes], check)
    return VolumesSource(
        uri,
        volumes,
        tuple(Part(file, int(file != MISSING)) for file in files),
        common_dtype(*(volume.dtype for volume in volumes)),
        local.fingerprint(form, [file != MISSING for file in files]),
    )


def _check_same_grid(first: VolumeSource, other: VolumeSource) -> None:
    mine, theirs = first.space, other.space
    if mine.shape != theirs.shape:
        sizes = [" x ".join(map(str, space.shape[::-1])) for space in (theirs, mine)]
        raise InputError(
            f"{other.uri} has {sizes[0]} voxels and {first.uri} {sizes[1]}; resample one onto the grid of the other"
        )
    far = _apart(mine, theirs)
    if far > _NEAR:
        raise InputError(
            f"{other.uri} and {first.uri} have affines that put their corners up to {far:.3g} mm apart; "
            "resample one onto the grid of the other"
        )


def _apart(mine: Space, theirs: Space) -> float:
    """Millimetres between a corner and the same corner in the other, where they are most."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in mine.shape[::-1]], indexing="ij")).reshape(mine.ndim, -1)
    difference = np.array(mine.affine) - np.array(theirs.affine)
    return float(np.linalg.norm(difference[:, :-1] @ corners + difference[:, -1:], axis=0).max())
