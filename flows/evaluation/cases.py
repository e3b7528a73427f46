"""Which prediction belongs to which truth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flows.evaluation.labels import LabelMap, is_store
from flows.placement import check_same_place
from tiling import InputError

_NEAR = 0.05  # of a pixel or voxel: what two tools may round a placement by
_IMAGE = r"\.(?:zarr|nii|nii\.gz|tif|tiff|png|vrt|img|jp2|bmp|webp)"
# What `lmseg segment` writes beside the labels.
_OTHERS = re.compile(rf"_(?:preview|prob|uncertainty){_IMAGE}$", re.IGNORECASE)
_LABELS = re.compile(rf"^(?P<name>.+?)(?:_seg|_labels)?{_IMAGE}$", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """A prediction and its truth, on one grid."""

    name: str
    prediction: LabelMap
    truth: LabelMap


def pair(prediction: str, truth: str) -> list[Case]:
    """The cases of two label maps, or of two folders with label maps of the same names.

    Names are compared without their ending and without `_seg` and `_labels`. Of a folder that holds stores of runs and
    their exports, the stores are taken.

    Raises:
        InputError: where a case has no partner, two files have one name, or partners lie on different grids.
    """
    folders = [Path(p).is_dir() and not is_store(p) for p in (prediction, truth)]
    if not any(folders):
        return [_case(_name(prediction), prediction, truth)]
    if not all(folders):
        folder, file = (prediction, truth) if folders[0] else (truth, prediction)
        raise InputError(f"{folder} is a folder and {file} is not; give two label maps or two folders")
    mine, true = _listed(prediction), _listed(truth)
    for have, lack, where in ((mine, true, truth), (true, mine, prediction)):
        if alone := [path for name, path in have.items() if name not in lack]:
            more = f", nor have {len(alone) - 1} others" if len(alone) > 1 else ""
            raise InputError(f"{alone[0]} has no partner in {where}{more}; add it or move the file away")
    cases = [_case(name, path, true[name]) for name, path in mine.items()]
    for case in cases:
        if case.truth.space.ndim != cases[0].truth.space.ndim:
            raise InputError(
                f"{prediction} holds rasters and volumes, such as {cases[0].prediction.name} and "
                f"{case.prediction.name}; evaluate them one after the other"
            )
    return cases


def _case(name: str, prediction: str, truth: str) -> Case:
    case = Case(name, LabelMap.open(prediction), LabelMap.open(truth))
    check_same_place(prediction, case.prediction.space, truth, case.truth.space, _NEAR)
    return case


def _name(path: str) -> str:
    last = path.split(",")[0].rstrip("/").rsplit("/", 1)[-1]
    match = _LABELS.match(last)
    return match["name"] if match else last


def _listed(folder: str) -> dict[str, str]:
    """The label maps of a folder by the names of their cases, in order."""
    found: dict[str, str] = {}
    # Stores first: their exports say the same, and less.
    for path in sorted(Path(folder).iterdir(), key=lambda p: (not is_store(p.name), p.name)):
        match = _LABELS.match(path.name)
        if match is None or path.name.startswith(".") or _OTHERS.search(path.name):
            continue
        other = found.setdefault(match["name"], str(path))
        if other != str(path) and not is_store(other):
            raise InputError(f"{path} and {other} are both named {match['name']}; move one of them away")
    if not found:
        raise InputError(f"{folder} holds no label maps; give a folder with .tif, .png, .nii, .nii.gz or .zarr")
    return dict(sorted(found.items()))
